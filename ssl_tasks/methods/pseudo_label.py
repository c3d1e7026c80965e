"""Implements Pseudo-Label (Lee 2013, ICML workshop on challenges in representation learning; no arXiv id).

Each unlabelled image's label is the network's own argmax at the current weights, computed again at every step:
loss = CE(labelled) + α(t) · CE(unlabelled, argmax), with α 0 before T1, then linear, and α_f from T2 on.

`weight` α_f; `ramp_start` T1 and `ramp_end` T2 as shares of the run (Lee: epochs 100 and 600); `threshold` 0 lets
every image count, as Lee does; the `pseudo-label` baselines of later papers use .95. `units: sigmoid` is Lee's
output: one sigmoid for each class, and CE is the sum over classes of their binary cross-entropies; later papers have
`softmax`. Weight 0 with sigmoid units is Lee's supervised network. The mean is over all unlabelled images, those below
the threshold included as zeros (as in the baselines of MixMatch and FixMatch).

Deviations: in evaluation, probabilities are the softmax of the outputs for both kinds of units; the predicted classes
are the same.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import Losses, Method, adjusted, combine, forward_together, supervised_alone
from selftrain.ssl_tasks.methods.math import confident, linear_ramp, pseudo_label_logs, weighted_cross_entropy
from selftrain.ssl_tasks.settings.methods import PseudoLabelSettings


def binary_cross_entropies(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean over the batch of weight · the sum over classes of each sigmoid's binary cross-entropy."""
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
    return losses.mean() if weights is None else (weights * losses).mean()


class PseudoLabel(Method):
    """The method; the label is the network's own argmax, and its weight rises."""

    views = Views(labeled=("weak",), unlabeled=("weak",))
    settings: PseudoLabelSettings

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        settings = self.settings
        if settings.weight == 0 and settings.units == "softmax":
            return supervised_alone(student, batch)
        if settings.weight == 0:
            supervised = binary_cross_entropies(student(batch.labeled[0]).float(), batch.labels, batch.label_weights)
            return Losses(supervised, {"supervised": supervised.detach()})
        cross_entropy = weighted_cross_entropy if settings.units == "softmax" else binary_cross_entropies
        logits, logits_unlabeled = forward_together(student, *batch.labeled, *batch.unlabeled)
        outputs = logits_unlabeled.detach()
        probs = outputs.softmax(dim=1) if settings.units == "softmax" else torch.sigmoid(outputs)
        labels, mask = probs.argmax(dim=1), confident(probs, settings.threshold)
        supervised = cross_entropy(adjusted(logits, batch), batch.labels, batch.label_weights)
        unsupervised = cross_entropy(logits_unlabeled, labels, mask)
        alpha = settings.weight * linear_ramp(progress, settings.ramp_end - settings.ramp_start, settings.ramp_start)
        logs = pseudo_label_logs(labels, mask, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, alpha, (logits, logits_unlabeled), logs)
