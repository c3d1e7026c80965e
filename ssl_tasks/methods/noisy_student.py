"""Implements the student of Noisy Student (Xie et al. 2019, arXiv 1911.04252); `predict` and `select` are the teacher.

A student learns from labelled images and from images with a teacher's stored pseudo-labels, both under strong
augmentation, dropout and stochastic depth (the model's settings):
loss = CE(labelled, smoothed) + weight · CE(pseudo-labels). Soft pseudo-labels are used unchanged; hard ones (one-hot
rows) are smoothed like true labels. `train.unlabeled_ratio` sets the number of pseudo-labelled images in a batch.

Deviations: the paper's equation weights the two means equally, which is `weight: 1`; the official code multiplies the
second by its ratio (`unlabel_ratio`, 1 to 14), which is `weight: <unlabeled_ratio>`.
"""

import torch
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import Losses, Method, combine, forward_together, labeled_cross_entropy
from selftrain.ssl_tasks.methods.math import pseudo_label_logs, soft_cross_entropy
from selftrain.ssl_tasks.settings.methods import NoisyStudentSettings


def smooth_hard(targets: Tensor, smoothing: float) -> Tensor:
    """Returns (1 - ε) t + ε/K for one-hot rows; soft rows are unchanged."""
    hard = targets.amax(dim=1, keepdim=True) == 1
    return torch.where(hard, (1 - smoothing) * targets + smoothing / targets.shape[1], targets)


class NoisyStudent(Method):
    """Learns labelled and pseudo-labelled images under the same noise; without a selection, only labelled ones."""

    views = Views(labeled=("strong",), pseudo=("strong",))
    settings: NoisyStudentSettings

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        pseudo = batch.pseudo if self.settings.weight else ()
        logits, *logits_pseudo = forward_together(student, *batch.labeled, *pseudo)
        smoothing = self.settings.label_smoothing
        supervised = labeled_cross_entropy(logits, batch, smoothing)
        if not logits_pseudo:
            return Losses(supervised, {"supervised": supervised.detach()})
        targets = smooth_hard(batch.pseudo_targets, smoothing)
        unsupervised = soft_cross_entropy(logits_pseudo[0], targets).mean()
        labels = batch.pseudo_targets.argmax(dim=1)
        logs = pseudo_label_logs(labels, torch.ones_like(labels), labels[:0], self.problem.num_classes)
        return combine(supervised, unsupervised, self.settings.weight, (logits, *logits_pseudo), logs)
