"""Implements FreeMatch (Wang et al. 2022, arXiv 2205.07246).

It is FixMatch with thresholds that follow the model. It has three moving averages over unlabelled weak views, with
decay m and starting at 1/K: the global threshold τ of the largest probability, p of the prediction, h of the shares of
predicted classes.
Class c's threshold is τ · p_c / max p, and loss = CE(labelled) + weight · mean of 1[max q ≥ τ_argmax] · CE(strong)
+ fairness_weight · Σ N(p / h) log N(p̄ / h̄), where p̄ and h̄ are the mean prediction and the shares of predicted
classes of the strong views that count, and N divides by the sum. The last term is 0 if none counts.

As in the official code: the averages include the batch BEFORE the mask is made; τ follows the mean of the largest
probabilities or, if `quantile` is set (official alternative .8), their quantile; 1/0 counts as 0 in N.
`clip` limits τ from above (official .95 for some data sets); `decay` m. Deviations: none known.
"""

import torch
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import gather_rows, mean_over_ranks, sum_over_ranks, world
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    Problem,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import class_counts, pseudo_label_logs, weighted_cross_entropy
from selftrain.ssl_tasks.settings.methods import FreeMatchSettings


def scaled(probs: Tensor, histogram: Tensor) -> Tensor:
    """Returns N(probs / histogram); 1/0 counts as 0."""
    ratio = torch.where(histogram > 0, probs / histogram.clamp_min(torch.finfo(probs.dtype).tiny), 0.0)
    return ratio / ratio.sum().clamp_min(torch.finfo(probs.dtype).tiny)


def fairness_loss(logits_strong: Tensor, mask: Tensor, probs_average: Tensor, histogram_average: Tensor) -> Tensor:
    """Returns Σ N(p / h) log N(p̄ / h̄) over the rows that count, of all ranks; 0 if none counts."""
    number = sum_over_ranks(mask.sum())
    share = world() / number.clamp_min(1)
    probs = logits_strong.softmax(dim=1)
    histogram = mean_over_ranks(share * class_counts(probs.argmax(dim=1), probs.shape[1], mask))
    mean = share * (mask[:, None] * probs).sum(dim=0)
    mean = mean + (mean_over_ranks(mean) - mean).detach()  # the value of all ranks, the gradient of this rank
    loss = (scaled(probs_average, histogram_average) * (scaled(mean, histogram) + 1e-12).log()).sum()
    return torch.where(number > 0, loss, 0.0)


class FreeMatch(Method):
    """The method; its thresholds adapt during training."""

    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    settings: FreeMatchSettings
    global_threshold: Tensor  # τ
    probs_average: Tensor  # p [K]
    histogram_average: Tensor  # h [K]

    def __init__(self, settings: FreeMatchSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        uniform = torch.full((problem.num_classes,), 1 / problem.num_classes)
        self.register_buffer("global_threshold", uniform[0].clone())
        self.register_buffer("probs_average", uniform)
        self.register_buffer("histogram_average", uniform.clone())

    @torch.no_grad()
    def update(self, probs_weak: Tensor) -> None:
        """Updates the three averages with the whole batch, of all ranks."""
        confidence, labels = probs_weak.max(dim=1)
        rate, quantile = 1 - self.settings.decay, self.settings.quantile
        level = mean_over_ranks(confidence.mean()) if quantile is None else gather_rows(confidence).quantile(quantile)
        self.global_threshold.lerp_(level, rate)
        if self.settings.clip is not None:
            self.global_threshold.clamp_(max=self.settings.clip)
        histogram = class_counts(labels, self.problem.num_classes) / len(labels)
        self.probs_average.lerp_(mean_over_ranks(probs_weak.mean(dim=0)), rate)
        self.histogram_average.lerp_(mean_over_ranks(histogram), rate)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        settings = self.settings
        if settings.weight == settings.fairness_weight == 0:
            return supervised_alone(student, batch)
        logits, logits_weak, logits_strong = forward_together(student, *batch.labeled, *batch.unlabeled)
        probs_weak = logits_weak.detach().softmax(dim=1)
        self.update(probs_weak)
        confidence, labels = probs_weak.max(dim=1)
        thresholds = self.global_threshold * self.probs_average / self.probs_average.max()
        mask = (confidence >= thresholds[labels]).float()
        supervised = labeled_cross_entropy(logits, batch)
        unsupervised = weighted_cross_entropy(logits_strong, labels, mask)
        logs = pseudo_label_logs(labels, mask, batch.unlabeled_truth, self.problem.num_classes)
        losses = combine(supervised, unsupervised, settings.weight, (logits, logits_strong), logs)
        fairness = fairness_loss(logits_strong, mask, self.probs_average, self.histogram_average)
        return Losses(
            losses.total + settings.fairness_weight * fairness, {**losses.logs, "fairness": fairness.detach()}
        )
