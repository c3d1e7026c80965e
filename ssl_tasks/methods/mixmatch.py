"""Implements MixMatch (Berthelot et al. 2019, arXiv 1905.02249).

An unlabelled image's guess is the mean of the predictions for its K weak views, sharpened by temperature T; it is the
target of all K. Labelled and unlabelled images are mixed with shuffled ones of both kinds, W = shuffle(X, U), by
λ' = max(λ, 1 - λ) with λ ~ Beta(α, α) drawn for each image, so that each stays closer to its first half.
loss = CE(mixed labelled) + weight(t) · mean over images AND classes of (target - softmax(mixed unlabelled))².

As in the official code: guesses are made in train mode but update no batch-norm statistics; the mixed images go
through the network in interleaved batches, each with its share of labelled ones, and only the first updates the
statistics; the weight rises over 16,384 of 2²⁰ steps (a popular port ramps over the whole run). The engine applies its
decoupled decay.

Deviations: none known for one unlabelled image per labelled one (unlabeled_ratio 1, as the paper); other ratios keep
the interleaved batches at about the labelled batch's size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, View, Views
from selftrain.ssl_tasks.methods.base import Losses, Method, Problem, combine
from selftrain.ssl_tasks.methods.math import (
    dominant_lambda,
    frozen_statistics,
    interleaved_forward,
    linear_ramp,
    mix_with_shuffled,
    pseudo_label_logs,
    sharpen,
    soft_cross_entropy,
    squared_difference,
)
from selftrain.ssl_tasks.settings.methods import MixMatchSettings


class MixMatch(Method):
    """The method: guesses and the two losses. Mixing and interleaving are in `ssl_tasks/methods/math.py`."""

    mixes_labels = True

    def __init__(self, settings: MixMatchSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        weak: View = "weak"
        self.views = Views(labeled=(weak,), unlabeled=(weak,) * settings.views)

    @torch.no_grad()
    def guess(self, student: Classifier, views: tuple[Tensor, ...]) -> Tensor:
        """Returns the sharpened mean prediction of the views, each in a separate pass."""
        with frozen_statistics(student):
            mean = torch.stack([student(view).float().softmax(dim=1) for view in views]).mean(dim=0)
        return sharpen(mean, self.settings.temperature)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        guess = self.guess(student, batch.unlabeled)
        logits, targets = mixed_forward(student, batch, guess, self.settings.alpha)
        count = len(batch.labels)
        supervised = weighted_mean(soft_cross_entropy(logits[:count], targets[:count]), batch.label_weights)
        unsupervised = squared_difference(logits[count:].softmax(dim=1), targets[count:]).mean()
        weight = self.settings.weight * linear_ramp(progress, self.settings.ramp_up)
        return combine(supervised, unsupervised, weight, [logits], guess_logs(guess, batch))


def mixed_forward(student: Classifier, batch: Batch, guess: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns logits and targets of the mixed images: labelled ones first, then unlabelled ones view by view."""
    images = torch.cat([*batch.labeled, *batch.unlabeled])
    labels = F.one_hot(batch.labels, guess.shape[1]).to(guess.dtype)
    targets = torch.cat([labels, *[guess] * len(batch.unlabeled)])
    lam = dominant_lambda(alpha, len(images), images.device)
    images, targets = mix_with_shuffled(images, targets, lam)
    return interleaved_forward(student, images, batches=round(len(images) / len(labels))).float(), targets


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Returns the mean over images; if labels are weighted, a mixed image has the weight of its dominant half."""
    return losses.mean() if weights is None else (weights * losses).mean()


def guess_logs(guess: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Returns the diagnosis of guesses that all count."""
    hard = guess.argmax(dim=1)
    return pseudo_label_logs(hard, torch.ones_like(hard), batch.unlabeled_truth, guess.shape[1])
