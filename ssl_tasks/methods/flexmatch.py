"""Implements FlexMatch (Zhang et al. 2021, arXiv 2110.08263).

It is FixMatch with a threshold for each class, lower for classes that are learned less. An image's last pseudo-label
above τ is remembered; β_c is the number of images remembered for class c, over the largest such number; the threshold
of c is τ · M(β_c) with M(x) = x / (2 - x). Warm-up: while more images have no label yet than any class has, their
number replaces the largest. Then loss = CE(labelled) + weight · mean of 1[max q ≥ τ M(β_argmax)] · CE(strong).

As in the official code: only images above the fixed τ are remembered; the mask uses the β from before this batch; β
starts at 0, so that the first thresholds are 0 and every image counts; β no longer changes once every image has a
label of the same class.

`threshold` τ; `weight` λ; `warmup` the unused bin; `mapping` convex (official) or linear (M(x) = x, the ablation).
Deviations: if a batch shows one image twice, the larger label number is remembered, so that a GPU's order of writing
cannot matter.
"""

import torch
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import gather_rows
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    Problem,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import (
    class_counts,
    confident,
    pseudo_label_logs,
    weighted_cross_entropy,
)
from selftrain.ssl_tasks.settings.methods import FlexMatchSettings


def learning_status(remembered: Tensor, num_classes: int, warmup: bool) -> Tensor:
    """Returns β [K] from every image's remembered class, -1 for none yet."""
    counts = class_counts(remembered + 1, num_classes + 1)
    largest = counts.max() if warmup else counts[1:].max().clamp_min(1)
    return counts[1:] / largest


def class_thresholds(status: Tensor, threshold: float, mapping: str) -> Tensor:
    """Returns τ · M(β) for each class."""
    return threshold * (status / (2 - status) if mapping == "convex" else status)


class FlexMatch(Method):
    """The method; it remembers each image's last pseudo-label above τ."""

    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    settings: FlexMatchSettings
    remembered: Tensor  # [N], -1 for none
    status: Tensor  # β [K]

    def __init__(self, settings: FlexMatchSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.register_buffer("remembered", torch.full((problem.num_unlabeled,), -1))
        self.register_buffer("status", torch.zeros(problem.num_classes))

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        settings = self.settings
        if settings.weight == 0:
            return supervised_alone(student, batch)
        logits, logits_weak, logits_strong = forward_together(student, *batch.labeled, *batch.unlabeled)
        probs_weak = (logits_weak.detach() / settings.confidence_temperature).softmax(dim=1)
        confidence, labels = probs_weak.max(dim=1)
        mask = (confidence >= class_thresholds(self.status, settings.threshold, settings.mapping)[labels]).float()
        self.remember(batch.unlabeled_index, labels, confident(probs_weak, settings.threshold))
        supervised = labeled_cross_entropy(logits, batch)
        unsupervised = weighted_cross_entropy(logits_strong, labels, mask)
        logs = pseudo_label_logs(labels, mask, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, settings.weight, (logits, logits_strong), logs)

    @torch.no_grad()
    def remember(self, index: Tensor, labels: Tensor, selected: Tensor) -> None:
        """Stores the accepted labels of all ranks, then updates β."""
        index, labels = gather_rows(index), gather_rows(torch.where(selected > 0, labels, -1))
        newest = torch.full_like(self.remembered, -1).scatter_reduce_(0, index, labels, "amax")
        self.remembered.copy_(torch.where(newest >= 0, newest, self.remembered))
        status = learning_status(self.remembered, self.problem.num_classes, self.settings.warmup)
        settled = (self.remembered == self.remembered[0]).all()
        self.status.copy_(torch.where(settled, self.status, status))
