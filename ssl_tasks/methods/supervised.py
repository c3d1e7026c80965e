"""Trains on the labelled images, and on accepted pseudo-labels if there are any; the baseline of all methods.

Cross-entropy with label smoothing (1512.00567): the target is (1 - ε) one-hot + ε/K.
MixUp (1710.09412): images and targets are mixed with one λ ~ Beta(α, α) a batch. CutMix (1905.04899): a rectangle of
area 1 - λ comes from another image, and λ becomes the share that is left after clipping. With both, each batch uses
one of them with probability ½. `mixup` and `cutmix` are α; 0 is off. If labels are weighted, both labels of a mixed
image keep their weights.
"""

import torch
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import Losses, Method, Problem, adjusted, labeled_cross_entropy
from selftrain.ssl_tasks.methods.math import draw_lambda, mix, weighted_cross_entropy
from selftrain.ssl_tasks.settings.methods import SupervisedSettings


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float, partner: Tensor, share: Tensor | float
) -> Tensor:
    """Returns λ · loss with the image's own label + (1 - λ) · loss with its partner's."""
    theirs = None if weights is None else weights[partner]
    own_loss = weighted_cross_entropy(logits, labels, weights, smoothing)
    return share * own_loss + (1 - share) * weighted_cross_entropy(logits, labels[partner], theirs, smoothing)


def paste_rectangle(images: Tensor, partner: Tensor, share: float, centre: tuple[float, float]) -> tuple[Tensor, float]:
    """Applies CutMix: pastes the partner's pixels of area 1 - λ around `centre` (0 … 1); also returns the true λ."""
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    (top, bottom), (left, right) = (
        (max(0, round((at - side / 2) * length)), min(length, round((at + side / 2) * length)))
        for at, length in zip(centre, (height, width), strict=True)
    )
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[partner][..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


class Supervised(Method):
    """The method; it learns only from labels."""

    settings: SupervisedSettings

    def __init__(self, settings: SupervisedSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.views = Views(labeled=(settings.view,))

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        (images,), settings = batch.labeled, self.settings
        share: Tensor | float
        if not settings.mixup and not settings.cutmix:
            loss = labeled_cross_entropy(student(images), batch, settings.label_smoothing)
            return Losses(loss, {"supervised": loss.detach()})
        partner = torch.randperm(len(images), device=images.device)
        if settings.cutmix and (not settings.mixup or torch.rand(()) < 0.5):
            row, column = torch.rand(2).tolist()
            drawn = draw_lambda(settings.cutmix, 1, torch.device("cpu")).item()
            images, share = paste_rectangle(images, partner, drawn, (row, column))
        else:
            share = draw_lambda(settings.mixup, 1, images.device)[0]
            images = mix(images, images[partner], share)
        loss = mixed_cross_entropy(
            adjusted(student(images), batch),
            batch.labels,
            batch.label_weights,
            settings.label_smoothing,
            partner,
            share,
        )
        return Losses(loss, {"supervised": loss.detach()})
