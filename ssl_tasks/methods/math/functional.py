"""Pure tensor functions that methods share. None of them reads a value back from the device.

Unless a mean is promised, a loss is per row, [n, K] → [n]: methods mask, weigh and average as their papers do.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """The mean over the batch of weight · cross-entropy; every weight is 1 where none are given."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)).mean()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-Σ t·log p per row, for targets that are rows of probabilities."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(target ‖ prediction) per row, both given as logits."""
    target = F.log_softmax(target_logits, dim=-1)
    return (target.exp() * (target - F.log_softmax(logits, dim=-1))).sum(dim=-1)


def squared_difference(probs: Tensor, targets: Tensor) -> Tensor:
    """(p - t)² per row, the mean over classes."""
    return (probs - targets).square().mean(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """-Σ p·log p per row."""
    return soft_cross_entropy(logits, logits.softmax(dim=-1))


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """p^(1/T), normalised: one-hot as T → 0, unchanged at 1."""
    return (probs.clamp_min(torch.finfo(probs.dtype).tiny).log() / temperature).softmax(dim=-1)


def confident(probs: Tensor, threshold: float) -> Tensor:
    """Rows whose largest probability reaches the threshold, as 0 or 1; a threshold of 1 lets nothing through.

    Without the exception for 1, a softmax that saturates in float32 would pass.
    """
    return (probs.amax(dim=-1) >= (threshold if threshold < 1 else math.inf)).to(probs.dtype)


def align_distribution(probs: Tensor, target_mean: Tensor, model_mean: Tensor) -> Tensor:
    """q · target / model, normalised (ReMixMatch): the guesses' mean is pulled to the target's."""
    aligned = probs * target_mean / model_mean.clamp_min(torch.finfo(probs.dtype).eps)
    return aligned / aligned.sum(dim=-1, keepdim=True)


def class_counts(labels: Tensor, num_classes: int, weights: Tensor | None = None) -> Tensor:
    """How many rows (or how much weight) each class has; float, exact for counts below 2^24."""
    weights = torch.ones_like(labels, dtype=torch.float32) if weights is None else weights.float()
    return torch.zeros(num_classes, device=labels.device).scatter_add_(0, labels, weights)


def pseudo_label_logs(labels: Tensor, counted: Tensor, truth: Tensor, num_classes: int) -> dict[str, Tensor]:
    """The numbers by which runs of all methods are judged; NaN where there is nothing to judge.

    `counted` is each row's mask or weight. `truth` is -1 where unknown, or empty where nobody knows any.
    """
    counts = class_counts(labels, num_classes, counted)
    logs = {"mask": counted.float().mean(), "pseudo_largest_class": counts.max() / counts.sum()}
    if len(truth):
        judged = counted * (truth >= 0)
        logs["pseudo_accuracy"] = (judged * (labels == truth)).sum() / judged.sum()
    return logs


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products in fp32 whatever the run's format: neither autocast's nor, on CUDA, TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
