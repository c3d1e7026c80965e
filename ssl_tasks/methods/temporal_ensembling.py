"""Implements temporal ensembling (Laine & Aila 2016, arXiv 1610.02242).

Every unlabelled image's training predictions z are averaged over epochs: after each, Z ← α Z + (1 - α) z. Its target
in the next epoch is Z / (1 - αᵗ), t the number of epochs in Z. loss = CE(labelled) + w(t) · mean over images and
classes of (softmax - target)², where w rises by exp(-5 (1 - t)²). In the first epoch there is no target and w is 0.

`weight` w_max (between means, as in the Π-model: see `pi_model.py`); `alpha` α; `ramp_up` share of the run over which
w rises (official: 80 of 300 epochs).

Each image has its own Z and t, as in the official code's sparse mode, so that an image that an epoch left out keeps its
target. An image that an epoch shows twice counts with its mean (official: the later one).
Deviations: the consistency loss is on the unlabelled pool, which includes the labelled images if the split says so.
"""

import torch
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import gather_rows
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    Pools,
    Problem,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import pseudo_label_logs, sigmoid_ramp, squared_difference
from selftrain.ssl_tasks.settings.methods import TemporalEnsemblingSettings


class TemporalEnsembling(Method):
    """The method; it remembers each image's average over epochs, and the sums of the current epoch."""

    views = Views(labeled=("weak",), unlabeled=("weak",))
    settings: TemporalEnsemblingSettings
    average: Tensor  # Z [N, K]
    epochs: Tensor  # t [N]
    epoch_sum: Tensor  # [N, K]
    epoch_count: Tensor  # [N]

    def __init__(self, settings: TemporalEnsemblingSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        images, classes = problem.num_unlabeled, problem.num_classes
        for name, shape in {
            "average": (images, classes),
            "epochs": (images,),
            "epoch_sum": (images, classes),
            "epoch_count": (images,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

    def refresh_every(self) -> int:
        return -(-self.problem.num_unlabeled // self.problem.unlabeled_batch)

    @torch.no_grad()
    def before_epoch(self, student: Classifier, pools: Pools) -> None:
        alpha, seen = self.settings.alpha, self.epoch_count > 0
        mean = self.epoch_sum / self.epoch_count.clamp_min(1)[:, None]
        self.average.copy_(torch.where(seen[:, None], alpha * self.average + (1 - alpha) * mean, self.average))
        self.epochs += seen
        self.epoch_sum.zero_()
        self.epoch_count.zero_()

    def targets(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns Z / (1 - αᵗ) of these images, and 1 or 0: whether they have a target yet."""
        epochs = self.epochs[index]
        correction = 1 - self.settings.alpha ** epochs.clamp_min(1)
        return self.average[index] / correction[:, None], (epochs > 0).float()

    @torch.no_grad()
    def remember(self, index: Tensor, probs: Tensor) -> None:
        """Adds this step's predictions, of all ranks, to the epoch's sums."""
        index, probs = gather_rows(index), gather_rows(probs)
        self.epoch_sum.index_add_(0, index, probs)
        self.epoch_count.index_add_(0, index, torch.ones_like(index, dtype=torch.float32))

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        if self.settings.weight == 0:
            return supervised_alone(student, batch)
        logits, logits_unlabeled = forward_together(student, *batch.labeled, *batch.unlabeled)
        probs = logits_unlabeled.softmax(dim=1)
        targets, known = self.targets(batch.unlabeled_index)
        self.remember(batch.unlabeled_index, probs.detach())
        supervised = labeled_cross_entropy(logits, batch)
        unsupervised = (known * squared_difference(probs, targets)).mean()
        weight = self.settings.weight * sigmoid_ramp(progress, self.settings.ramp_up)
        logs = pseudo_label_logs(targets.argmax(dim=1), known, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, weight, (logits, logits_unlabeled), logs)
