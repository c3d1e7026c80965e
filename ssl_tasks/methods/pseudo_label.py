"""Pseudo-Label (Lee 2013, ICML workshop on challenges in representation learning; no arXiv id).

Each unlabelled image's label is the network's own argmax at the current weights, drawn anew at every step:
loss = CE(labelled) + α(t) · CE(unlabelled, argmax), with α 0 before T1, then linear, and α_f from T2 on.

`weight` α_f; `ramp_start` T1 and `ramp_end` T2 as shares of the run (Lee: epochs 100 and 600); `threshold` 0 lets
every image count, as Lee does; the `pseudo-label` baselines of later papers use .95.

Deviations: softmax and cross-entropy where Lee has sigmoid units and one binary cross-entropy per class.
The mean is over all unlabelled images, those below the threshold included as zeros (as FixMatch's baseline).
"""

from models.classifier import Classifier
from ssl_tasks.batch import Batch, Views
from ssl_tasks.functional import confident, pseudo_label_logs, weighted_cross_entropy
from ssl_tasks.methods.base import Losses, Method, combine, forward_together, supervised_alone
from ssl_tasks.methods.settings import PseudoLabelSettings
from ssl_tasks.schedules import linear_ramp


class PseudoLabel(Method):
    """Own argmax as the label, ramped up."""

    views = Views(labeled=("weak",), unlabeled=("weak",))
    settings: PseudoLabelSettings

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        settings = self.settings
        if settings.weight == 0:
            return supervised_alone(student, batch)
        logits, logits_unlabeled = forward_together(student, *batch.labeled, *batch.unlabeled)
        probs = logits_unlabeled.detach().softmax(dim=1)
        labels, mask = probs.argmax(dim=1), confident(probs, settings.threshold)
        supervised = weighted_cross_entropy(logits, batch.labels, batch.label_weights)
        unsupervised = weighted_cross_entropy(logits_unlabeled, labels, mask)
        alpha = settings.weight * linear_ramp(progress, settings.ramp_end - settings.ramp_start, settings.ramp_start)
        logs = pseudo_label_logs(labels, mask, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, alpha, (logits, logits_unlabeled), logs)
