"""Implements ReMixMatch (Berthelot et al. 2020, arXiv 1911.09785).

The weak view's prediction q is aligned, q · p_data / p_model normalised (p_data the labelled set's class shares,
p_model the mean of the unaligned predictions of the last 128 batches), THEN sharpened by T. It is the target of the
weak view and of all K strong views (augmentation anchoring). Labelled and unlabelled images are mixed as in MixMatch.
loss = CE(mixed labelled) + weight(t) · CE(mixed unlabelled) + anchor_weight(t) · CE(first strong view, unmixed)
     + rotation_weight · CE(which quarter turn the first strong view was given), by a head of its own on the features.

As in the official code: labelled images are strongly augmented; p_model starts uniform; images pass in interleaved
batches, of which only one updates the batch-norm statistics (the last; in MixMatch, and here, the first, which is drawn
in the same way); the unmixed views, each in a separate pass, do not update them. Strong views are CTAugment's if
`augment.strong` is `ctaugment`.

Deviations: p_data is the labelled set's exact shares, of which the official running mean is an estimate. Turns are
drawn for each image; the official code turns a quarter of the batch each way.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, View, Views
from selftrain.ssl_tasks.execution.distributed import mean_over_ranks
from selftrain.ssl_tasks.methods.base import Losses, Method, Problem, combine
from selftrain.ssl_tasks.methods.math import (
    align_distribution,
    frozen_statistics,
    linear_ramp,
    sharpen,
    soft_cross_entropy,
)
from selftrain.ssl_tasks.methods.mixmatch import guess_logs, mixed_forward, weighted_mean
from selftrain.ssl_tasks.settings.methods import ReMixMatchSettings


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Returns each square image turned by its number of quarter turns."""
    ways = torch.stack([images, *(images.rot90(turns, (2, 3)) for turns in (1, 2, 3))])
    return ways[quarters, torch.arange(len(images), device=images.device)]


class ReMixMatch(Method):
    """The method; the rotation head is a parameter, the last batches' mean predictions and their count are buffers."""

    mixes_labels = True
    wanted: Tensor
    recent: Tensor
    batches: Tensor
    rotation: nn.Linear

    def __init__(self, settings: ReMixMatchSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        strong: View = "strong"
        self.views = Views(labeled=(strong,), unlabeled=("weak", *(strong,) * settings.views))
        self.register_buffer("wanted", torch.tensor(problem.class_prior))
        uniform = torch.full((settings.alignment_batches, problem.num_classes), 1 / problem.num_classes)
        self.register_buffer("recent", uniform)
        self.register_buffer("batches", torch.tensor(0))

    def before_training(self, student: Classifier) -> None:
        self.rotation = nn.Linear(student.num_features, 4)

    @torch.no_grad()
    def guess(self, student: Classifier, weak: Tensor) -> Tensor:
        """Returns predictions, aligned by earlier batches and sharpened; remembers this batch's mean prediction."""
        probs = student(weak).float().softmax(dim=1)
        seen = self.recent.mean(dim=0)
        aligned = align_distribution(probs, self.wanted, seen) if self.settings.alignment else probs
        place = (self.batches % len(self.recent)).view(1)
        self.recent.index_copy_(0, place, mean_over_ranks(probs.mean(dim=0)).view(1, -1))
        self.batches += 1
        return sharpen(aligned, self.settings.temperature)

    def rotation_loss(self, student: Classifier, images: Tensor) -> Tensor:
        """Returns the cross-entropy of predicting each image's quarter turn."""
        quarters = torch.randint(4, (len(images),), device=images.device)
        return F.cross_entropy(self.rotation(student.features(turned(images, quarters))).float(), quarters)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        settings = self.settings
        weak, strong = batch.unlabeled[:2]
        with frozen_statistics(student):
            guess = self.guess(student, weak)
            anchored = soft_cross_entropy(student(strong).float(), guess).mean()
            rotation = self.rotation_loss(student, strong)
        logits, targets = mixed_forward(student, batch, guess, settings.alpha)
        losses, count = soft_cross_entropy(logits, targets), len(batch.labels)
        supervised = weighted_mean(losses[:count], batch.label_weights)
        ramp = linear_ramp(progress, settings.ramp_up)
        logs = {"anchored": anchored.detach(), "rotation": rotation.detach(), **guess_logs(guess, batch)}
        mixed = combine(supervised, losses[count:].mean(), settings.weight * ramp, [logits], logs)
        return Losses(
            mixed.total + settings.anchor_weight * ramp * anchored + settings.rotation_weight * rotation, mixed.logs
        )
