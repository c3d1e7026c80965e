"""Implements SoftMatch (Chen et al. 2023, arXiv 2301.10921).

It is FixMatch with a weight instead of the mask: a Gaussian, cut off above its mean, of the largest probability:
w = exp(-min(max q - μ, 0)² / (2 σ² / n²)), where μ and σ² are moving averages of the batches' mean and unbiased
variance of the largest probabilities. loss = CE(labelled) + weight · mean of w · CE(argmax q, strong).
With uniform alignment, q is aligned to a mean of 1/K before w is computed; the labels are those of the unaligned q.

As in the official code: μ starts at 1/K and σ² at 1; all averages include the batch before they are used; the running
mean of q starts at the first batch's.
`weight` λ; `sigmas` n, so that the Gaussian's width is σ / n; `decay` of the averages; `uniform_alignment`.
Deviations: none known.
"""

import torch
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import gather_rows, mean_over_ranks
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    Problem,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import align_distribution, pseudo_label_logs, weighted_cross_entropy
from selftrain.ssl_tasks.settings.methods import SoftMatchSettings


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor, sigmas: float) -> Tensor:
    """Returns 1 at and above the mean, and a Gaussian of width σ / n below it."""
    return (-(confidence - mean).clamp_max(0).square() / (2 * variance / sigmas**2)).exp()


class SoftMatch(Method):
    """The method; every unlabelled image counts, uncertain ones less."""

    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    settings: SoftMatchSettings
    mean: Tensor  # μ
    variance: Tensor  # σ²
    guesses: Tensor  # the running mean of q [K]; 0 before the first batch

    def __init__(self, settings: SoftMatchSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.register_buffer("mean", torch.tensor(1 / problem.num_classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("guesses", torch.zeros(problem.num_classes))

    @torch.no_grad()
    def weights(self, probs_weak: Tensor) -> Tensor:
        """Returns w of every row, after updating the averages with the batch."""
        rate = 1 - self.settings.decay
        if self.settings.uniform_alignment:
            batch_mean = mean_over_ranks(probs_weak.mean(dim=0))
            first = self.guesses.sum() == 0
            self.guesses.copy_(torch.where(first, batch_mean, self.guesses.lerp(batch_mean, rate)))
            probs_weak = align_distribution(probs_weak, torch.ones_like(self.guesses), self.guesses)
        confidence = probs_weak.amax(dim=1)
        variance, mean = torch.var_mean(gather_rows(confidence))
        self.mean.lerp_(mean, rate)
        self.variance.lerp_(variance, rate)
        return truncated_gaussian(confidence, self.mean, self.variance, self.settings.sigmas)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        if self.settings.weight == 0:
            return supervised_alone(student, batch)
        logits, logits_weak, logits_strong = forward_together(student, *batch.labeled, *batch.unlabeled)
        probs_weak = logits_weak.detach().softmax(dim=1)
        labels, weights = probs_weak.argmax(dim=1), self.weights(probs_weak)
        supervised = labeled_cross_entropy(logits, batch)
        unsupervised = weighted_cross_entropy(logits_strong, labels, weights)
        logs = pseudo_label_logs(labels, weights, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, self.settings.weight, (logits, logits_strong), logs)
