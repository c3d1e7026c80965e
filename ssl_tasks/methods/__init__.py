"""The methods by name. A new method: one file, its settings in `settings.py`, one line here, one test file.

Importing this package imports no torch; `build_method` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from selftrain.ssl_tasks.settings.methods import MethodSettings

if TYPE_CHECKING:
    from selftrain.ssl_tasks.methods.base import Method, Problem

METHODS: dict[str, str] = {  # name, which is also the module's → class
    "supervised": "Supervised",
    "pseudo_label": "PseudoLabel",
    "fixmatch": "FixMatch",
    "mean_teacher": "MeanTeacher",
    "pi_model": "PiModel",
    "temporal_ensembling": "TemporalEnsembling",
    "vat": "VAT",
    "ict": "ICT",
    "uda": "UDA",
    "flexmatch": "FlexMatch",
    "freematch": "FreeMatch",
    "softmatch": "SoftMatch",
    "noisy_student": "NoisyStudent",
    "label_propagation": "LabelPropagation",
    "mixmatch": "MixMatch",
    "remixmatch": "ReMixMatch",
    "confirmation_bias": "ConfirmationBias",
    "simclr": "SimCLR",
    "distillation": "Distillation",
    "meta_pseudo_labels": "MetaPseudoLabels",
    "dividemix": "DivideMix",
}

LABELS_ONLY = {"supervised", "noisy_student", "distillation"}
"""Methods that never look at the unlabelled pool: new unlabelled images do not make them train again."""


def method_class(name: str) -> "type[Method]":
    """The class behind a method's name."""
    return getattr(import_module(f"selftrain.ssl_tasks.methods.{name}"), METHODS[name])


def build_method(settings: MethodSettings, problem: "Problem") -> "Method":
    """The method that the settings name, ready to train."""
    return method_class(settings.name)(settings, problem)
