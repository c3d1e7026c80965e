"""Implements DivideMix (Li et al. 2020, arXiv 2002.07394), which learns from labels of which many may be wrong.

It trains two networks. Before each epoch, both evaluate every labelled image without augmentation: a mixture of two
Gaussians on the network's min-max-normalised losses gives the probability w that a label is clean. Each network uses
the OTHER one's division (co-divide), so that its own mistakes are not confirmed:
- images with w > `clean_threshold` keep a refined label: w · label + (1 - w) · the network's own mean prediction of
  the two views, sharpened (co-refinement);
- the others lose their label, and like unlabelled images get both networks' sharpened mean prediction (co-guessing).
All are mixed by one max(λ, 1 - λ) a batch. loss = mean CE(clean) + weight(t) · mean over images and classes of
(target - prediction)² (others) + KL(uniform ‖ mean prediction). In the warm-up both networks learn the labels as
given, for asymmetric noise with a penalty on confidence. The mean of both networks' logits is evaluated.

It accepts a fully but noisily labelled set (`use_unlabeled: false`) as well as a labelled and an unlabelled one.
`labels: clean` trusts all labels, so that two co-guessing networks remain. An epoch is a pass over the larger pool;
epochs are counted from the end of the warm-up.

Deviations: the networks take each step together, on one batch; the official code trains them in turn, an epoch each. A
batch holds clean and noisy images at random; the official one has equally many of each. So means are over the images
of the batch, and an empty half counts 0 (the official code fails on one). Its epoch ends with the clean images, 64 of
them beside 64 others per step; a batch of 128 here is as large. Predictions for targets are made from all views in one
pass. The moving average, if on, is of the first network only; the official code has none (`ema_decay: 0`).
"""

import math
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier, joined
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import average_buffers, mean_over_ranks, world
from selftrain.ssl_tasks.methods.base import Losses, Method, Pools, Problem, combine, labeled_cross_entropy, twin
from selftrain.ssl_tasks.methods.confirmation_bias import distance_from_uniform
from selftrain.ssl_tasks.methods.math import (
    dominant_lambda,
    entropy,
    first_step,
    linear_ramp,
    mix_with_shuffled,
    pseudo_label_logs,
    sharpen,
    soft_cross_entropy,
    squared_difference,
)
from selftrain.ssl_tasks.settings.methods import DivideMixSettings


def clean_probability(losses: np.ndarray) -> np.ndarray:
    """Returns [n] in 0 … 1: the posterior of the Gaussian with the smaller mean; 1 if all losses are equal."""
    from sklearn.exceptions import ConvergenceWarning  # not installed on every GPU machine
    from sklearn.mixture import GaussianMixture

    span = np.ptp(losses) if len(losses) > 1 else 0.0
    if not span > 0:
        return np.ones(len(losses))
    column = ((losses - losses.min()) / span).reshape(-1, 1)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations as in the official code, converged or not
        mixture.fit(column)
    return mixture.predict_proba(column)[:, mixture.means_.argmin()]


def mean_where(losses: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of the rows that the mask counts, over all ranks after their average; 0 if it counts none."""
    return (losses * mask).sum() / mean_over_ranks(mask.sum()).clamp_min(1 / world())


class DivideMix(Method):
    """The method; its buffers are both networks' last losses and the labels' probabilities to be clean."""

    mixes_labels = True
    settings: DivideMixSettings
    second: Classifier
    losses: Tensor
    clean: Tensor

    def __init__(self, settings: DivideMixSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        alone = not (settings.use_unlabeled and problem.num_unlabeled)
        self.views = Views(labeled=("weak", "weak"), unlabeled=() if alone else ("weak", "weak"))
        self.register_buffer("losses", torch.full((settings.loss_history, 2, problem.num_labeled), torch.nan))
        self.register_buffer("clean", torch.ones(2, problem.num_labeled))

    def before_training(self, student: Classifier) -> None:
        self.second = twin(student, self.settings.second, self.another)

    def refresh_every(self) -> int:
        labeled = math.ceil(self.problem.num_labeled / self.problem.batch_size)
        unlabeled = math.ceil(self.problem.num_unlabeled / self.problem.unlabeled_batch)
        return max(labeled, unlabeled) if self.views.unlabeled else labeled

    def refresh_from(self) -> int:
        return first_step(self.settings.warmup, self.problem.steps)

    @torch.no_grad()
    def before_epoch(self, student: Classifier, pools: Pools) -> None:
        """Lets both networks estimate the probability that each label is clean."""
        if self.settings.labels == "clean":
            return
        self.losses.copy_(self.losses.roll(1, dims=0))
        for number, network in enumerate((student, self.second)):
            training = network.training
            network.eval()
            for index, images, labels in pools.labeled():
                self.losses[0, number, index] = F.cross_entropy(network(images).float(), labels, reduction="none")
            network.train(training)
            judged = clean_probability(mean_loss(self.losses[:, number].double().cpu().numpy()))
            self.clean[number] = torch.from_numpy(judged)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        self.second.train()
        if progress < self.settings.warmup:
            return self.warm_up(student, batch)
        weight = self.settings.weight * linear_ramp(progress, self.settings.ramp_up, self.settings.warmup)
        first = self.divided(student, self.second, self.clean[1, batch.labeled_index], batch, weight)
        second = self.divided(self.second, student, self.clean[0, batch.labeled_index], batch, weight)
        logs = {name: (value + second.logs[name]) / 2 for name, value in first.logs.items()}
        return Losses(first.total + second.total, logs)

    def warm_up(self, student: Classifier, batch: Batch) -> Losses:
        """Trains both networks on the labels as given."""
        logits = [network(batch.labeled[0]).float() for network in (student, self.second)]
        losses = torch.stack([labeled_cross_entropy(one, batch) for one in logits])
        total = losses.sum()
        if self.settings.asymmetric:
            total = total - entropy(torch.cat(logits)).mean() * len(logits)
        return Losses(total, {"supervised": losses.mean().detach()})

    def divided(self, network: Classifier, other: Classifier, clean: Tensor, batch: Batch, weight: float) -> Losses:
        """Returns the loss of one network. `clean` are the other network's probabilities that the labels are clean."""
        images, known = torch.cat([*batch.labeled, *batch.unlabeled]), 2 * len(clean)
        trusted = clean > self.settings.clean_threshold
        mask = torch.cat([trusted, trusted, trusted.new_zeros(len(images) - known)]).float()
        targets = self.targets(network, other, images, clean, batch.labels)
        lam = dominant_lambda(self.settings.alpha, 1, images.device)
        mixed, mixed_targets = mix_with_shuffled(images, targets, lam)
        logits = network(mixed).float()
        losses = soft_cross_entropy(logits, mixed_targets)[:known]
        if batch.label_weights is not None:
            losses = losses * batch.label_weights.repeat(2)
        supervised = mean_where(losses, mask[:known])
        unsupervised = mean_where(squared_difference(logits.softmax(dim=1), mixed_targets), 1 - mask)
        logs = {"clean": trusted.float().mean()}
        if batch.unlabeled:
            guess = targets[-len(batch.unlabeled[0]) :].argmax(dim=1)
            logs |= pseudo_label_logs(guess, torch.ones_like(guess), batch.unlabeled_truth, targets.shape[1])
        divided = combine(supervised, unsupervised, weight, [logits], logs)
        return Losses(divided.total + distance_from_uniform(logits), divided.logs)

    @torch.no_grad()
    def targets(self, network: Classifier, other: Classifier, images: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Returns sharpened targets, a row per view: refined labels where trusted, else both networks' mean
        prediction."""
        own = network(images).float().softmax(dim=1)
        theirs = other.eval()(images).float().softmax(dim=1)
        other.train()
        mine, _ = mean_of_views(own, len(labels))
        guessed, guessed_unlabeled = mean_of_views((own + theirs) / 2, len(labels))
        share = clean[:, None]
        refined = share * F.one_hot(labels, own.shape[1]) + (1 - share) * mine
        labeled = torch.where(share > self.settings.clean_threshold, refined, guessed)
        parts = torch.cat([labeled, labeled, guessed_unlabeled, guessed_unlabeled])
        return sharpen(parts, self.settings.temperature)

    def after_step(self, student: Classifier) -> None:
        average_buffers(self.second)

    def evaluated(self, average: Classifier) -> Classifier:
        return joined([average, self.second])


def mean_of_views(probs: Tensor, known: int) -> tuple[Tensor, Tensor]:
    """Returns means over two views of the first `known` images, which are labelled, and of the unlabelled rest."""
    labeled, unlabeled = probs[: 2 * known], probs[2 * known :]
    half = len(unlabeled) // 2
    return (labeled[:known] + labeled[known:]) / 2, (unlabeled[:half] + unlabeled[half:]) / 2


def mean_loss(history: np.ndarray) -> np.ndarray:
    """Returns [n]: the mean over the recorded epochs of each epoch's losses, scaled to 0 … 1."""
    seen = history[~np.isnan(history).any(axis=1)]
    low, span = seen.min(axis=1, keepdims=True), np.ptp(seen, axis=1, keepdims=True)
    return ((seen - low) / np.where(span > 0, span, 1)).mean(axis=0)
