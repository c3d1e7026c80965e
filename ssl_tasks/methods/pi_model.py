"""Implements the Π-model (Laine & Aila 2016, arXiv 1610.02242).

Two weak views of an unlabelled image, under different dropout, must be predicted alike: loss = CE(labelled) +
w(t) · mean over images and classes of (softmax first - softmax second)², where w rises by exp(-5 (1 - t)²) and is 0
at the first step. As in the official code both predictions carry a gradient.

`weight` w_max; `ramp_up` share of the run over which w rises (official: 80 of 300 epochs); `ramp` sigmoid or linear;
`target_gradient`. The baselines of MixMatch's authors rise linearly and stop the gradient of one prediction
(`target_gradient: false`): the same weight then has half the gradient in the mean, so theirs of 20 is 10 with both.

The official code has w_max · labelled/all, but also divides the labelled loss by the size of the whole batch, whose
labelled share is labelled/all: between means, as here, the two cancel and w_max is the weight itself.
Deviations: the consistency loss is on the unlabelled pool, which includes the labelled images if the split says so. In
the baselines of MixMatch's authors, the three views pass the network separately, and only the labelled ones update
batch norm's running statistics.
"""

from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import pseudo_label_logs, ramp, squared_difference
from selftrain.ssl_tasks.settings.methods import PiModelSettings


def disagreement(logits: Tensor, logits_again: Tensor) -> Tensor:
    """Returns the mean squared difference of probabilities; both sides may have a gradient."""
    return squared_difference(logits.softmax(dim=1), logits_again.softmax(dim=1)).mean()


class PiModel(Method):
    """The method; the network is its own teacher, with another dropout mask and another view."""

    views = Views(labeled=("weak",), unlabeled=("weak", "weak"))
    settings: PiModelSettings

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        if self.settings.weight == 0:
            return supervised_alone(student, batch)
        logits, logits_first, logits_second = forward_together(student, *batch.labeled, *batch.unlabeled)
        supervised = labeled_cross_entropy(logits, batch)
        target = logits_first if self.settings.target_gradient else logits_first.detach()
        unsupervised = disagreement(target, logits_second)
        weight = self.settings.weight * ramp(self.settings.ramp, progress, self.settings.ramp_up) if progress else 0.0
        labels = logits_first.detach().argmax(dim=1)
        logs = pseudo_label_logs(labels, labels >= 0, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, weight, (logits, logits_first, logits_second), logs)
