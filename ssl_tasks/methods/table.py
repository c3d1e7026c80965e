"""Holds METHODS, the table of methods. A new method is one file, settings in `settings/methods.py`, one line here."""

from selftrain.ssl_tasks.methods.base import Method
from selftrain.ssl_tasks.methods.confirmation_bias import ConfirmationBias
from selftrain.ssl_tasks.methods.distillation import Distillation
from selftrain.ssl_tasks.methods.dividemix import DivideMix
from selftrain.ssl_tasks.methods.fixmatch import FixMatch
from selftrain.ssl_tasks.methods.flexmatch import FlexMatch
from selftrain.ssl_tasks.methods.freematch import FreeMatch
from selftrain.ssl_tasks.methods.ict import ICT
from selftrain.ssl_tasks.methods.label_propagation import LabelPropagation
from selftrain.ssl_tasks.methods.mean_teacher import MeanTeacher
from selftrain.ssl_tasks.methods.meta_pseudo_labels import MetaPseudoLabels
from selftrain.ssl_tasks.methods.mixmatch import MixMatch
from selftrain.ssl_tasks.methods.noisy_student import NoisyStudent
from selftrain.ssl_tasks.methods.pi_model import PiModel
from selftrain.ssl_tasks.methods.pseudo_label import PseudoLabel
from selftrain.ssl_tasks.methods.remixmatch import ReMixMatch
from selftrain.ssl_tasks.methods.simclr import SimCLR
from selftrain.ssl_tasks.methods.softmatch import SoftMatch
from selftrain.ssl_tasks.methods.supervised import Supervised
from selftrain.ssl_tasks.methods.temporal_ensembling import TemporalEnsembling
from selftrain.ssl_tasks.methods.uda import UDA
from selftrain.ssl_tasks.methods.vat import VAT

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "fixmatch": FixMatch,
    "mean_teacher": MeanTeacher,
    "pi_model": PiModel,
    "temporal_ensembling": TemporalEnsembling,
    "vat": VAT,
    "ict": ICT,
    "uda": UDA,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
    "noisy_student": NoisyStudent,
    "label_propagation": LabelPropagation,
    "mixmatch": MixMatch,
    "remixmatch": ReMixMatch,
    "confirmation_bias": ConfirmationBias,
    "simclr": SimCLR,
    "distillation": Distillation,
    "meta_pseudo_labels": MetaPseudoLabels,
    "dividemix": DivideMix,
}
