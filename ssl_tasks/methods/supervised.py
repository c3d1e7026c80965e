"""Supervised training on the labelled images (and on selected pseudo-labels where there are any), the baseline of all.

Cross-entropy with label smoothing (1512.00567): the target is (1 - ε) one-hot + ε/K.
MixUp (1710.09412): images and targets are mixed with one λ ~ Beta(α, α) a batch. CutMix (1905.04899): a rectangle of
area 1 - λ comes from another image, and λ becomes the share that is left after clipping. With both, a coin decides.
`mixup` and `cutmix` are α; 0 is off. Where labels are weighted, both labels of a mixed image keep theirs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.classifier import Classifier
from ssl_tasks.batch import Batch
from ssl_tasks.methods.base import Losses, Method
from ssl_tasks.methods.settings import SupervisedSettings


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of weight · cross-entropy."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")).mean()


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float, partner: Tensor, share: float
) -> Tensor:
    """λ · loss with the image's own label + (1 - λ) · loss with its partner's."""
    theirs = None if weights is None else weights[partner]
    own_loss = weighted_cross_entropy(logits, labels, weights, smoothing)
    return share * own_loss + (1 - share) * weighted_cross_entropy(logits, labels[partner], theirs, smoothing)


def mix_images(images: Tensor, partner: Tensor, share: float) -> Tensor:
    """MixUp: λ of an image and 1 - λ of its partner."""
    return images.lerp(images[partner], 1 - share)


def paste_rectangle(images: Tensor, partner: Tensor, share: float, centre: tuple[float, float]) -> tuple[Tensor, float]:
    """CutMix: the partner's pixels in a rectangle of area 1 - λ around `centre` (0 … 1); and the true λ."""
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    (top, bottom), (left, right) = (
        (max(0, round((at - side / 2) * length)), min(length, round((at + side / 2) * length)))
        for at, length in zip(centre, (height, width), strict=True)
    )
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[partner][..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def draw_beta(alpha: float) -> float:
    """λ ~ Beta(α, α)."""
    return float(torch.distributions.Beta(alpha, alpha).sample())


class Supervised(Method):
    """Learns from labels alone."""

    settings: SupervisedSettings

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        (images,), settings = batch.labeled, self.settings
        if not settings.mixup and not settings.cutmix:
            loss = weighted_cross_entropy(student(images), batch.labels, batch.label_weights, settings.label_smoothing)
            return Losses(loss, {"supervised": loss.detach()})
        partner = torch.randperm(len(images), device=images.device)
        if settings.cutmix and (not settings.mixup or torch.rand(()) < 0.5):
            row, column = torch.rand(2).tolist()
            images, share = paste_rectangle(images, partner, draw_beta(settings.cutmix), (row, column))
        else:
            share = draw_beta(settings.mixup)
            images = mix_images(images, partner, share)
        loss = mixed_cross_entropy(
            student(images), batch.labels, batch.label_weights, settings.label_smoothing, partner, share
        )
        return Losses(loss, {"supervised": loss.detach()})
