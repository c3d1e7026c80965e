"""Provides the tensor functions that methods share: losses, ramps, MixUp, interleaved passes, distribution alignment.

None of them reads a value back from the device. Unless a docstring says "mean", a loss is per row, [n, K] → [n], and
methods mask, weight and average as their papers do. Ramps are functions of a run's progress, from 0 (first step) to 1
(last).
"""

import contextlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from selftrain.ssl_tasks.execution.distributed import mean_over_ranks


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Returns the mean over the batch of weight · cross-entropy; the default weight is 1."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)).mean()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns -Σ t·log p per row, for targets that are rows of probabilities."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Returns KL(target ‖ prediction) per row, both given as logits."""
    target = F.log_softmax(target_logits, dim=-1)
    return (target.exp() * (target - F.log_softmax(logits, dim=-1))).sum(dim=-1)


def squared_difference(probs: Tensor, targets: Tensor) -> Tensor:
    """Returns (p - t)² per row, the mean over classes."""
    return (probs - targets).square().mean(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Returns -Σ p·log p per row."""
    return soft_cross_entropy(logits, logits.softmax(dim=-1))


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """Returns p^(1/T), normalised: one-hot as T → 0, unchanged at 1."""
    return (probs.clamp_min(torch.finfo(probs.dtype).tiny).log() / temperature).softmax(dim=-1)


def confident(probs: Tensor, threshold: float) -> Tensor:
    """Returns 1 for rows whose largest probability reaches the threshold, else 0; no row reaches a threshold of 1.

    Without the exception for 1, a softmax that saturates in float32 would reach it.
    """
    return (probs.amax(dim=-1) >= (threshold if threshold < 1 else math.inf)).to(probs.dtype)


def align_distribution(probs: Tensor, target_mean: Tensor, model_mean: Tensor) -> Tensor:
    """Returns q · target / model, normalised (ReMixMatch), so that the mean of the guesses approaches the target's."""
    aligned = probs * target_mean / model_mean.clamp_min(torch.finfo(probs.dtype).eps)
    return aligned / aligned.sum(dim=-1, keepdim=True)


def class_counts(labels: Tensor, num_classes: int, weights: Tensor | None = None) -> Tensor:
    """Counts the rows (or the weight) of each class; float, exact for counts below 2^24."""
    weights = torch.ones_like(labels, dtype=torch.float32) if weights is None else weights.float()
    return torch.zeros(num_classes, device=labels.device).scatter_add_(0, labels, weights)


def pseudo_label_logs(labels: Tensor, counted: Tensor, truth: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Returns the numbers on pseudo-labels that all methods log; NaN if no row counts.

    `counted` is each row's mask or weight. `truth` is -1 where unknown, or empty if none is known.
    """
    counts = class_counts(labels, num_classes, counted)
    logs = {"mask": counted.float().mean(), "pseudo_largest_class": counts.max() / counts.sum()}
    if len(truth):
        judged = counted * (truth >= 0)
        logs["pseudo_accuracy"] = (judged * (labels == truth)).sum() / judged.sum()
    return logs


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Computes matrix products in fp32 within the block: without autocast and, on CUDA, without TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def first_step(share: float, steps: int) -> int:
    """Returns the first step of a run of `steps` whose progress reaches a share; `steps` if none does."""
    return bisect_left(range(steps), share, key=lambda step: step / max(1, steps - 1))


def linear_ramp(progress: float, length: float, start: float = 0.0) -> float:
    """Returns 0 until `start`, then rises linearly to 1 within `length` of the run."""
    if progress >= start + length:
        return 1.0
    return 0.0 if progress <= start else (progress - start) / length


def sigmoid_ramp(progress: float, length: float) -> float:
    """Returns exp(-5 (1 - t)²) within the first `length` of the run, then 1 (temporal ensembling, mean teacher)."""
    return math.exp(-5 * (1 - linear_ramp(progress, length)) ** 2)


def ramp(kind: Literal["sigmoid", "linear"], progress: float, length: float) -> float:
    """Returns the rise of a weight within the first `length` of the run."""
    return linear_ramp(progress, length) if kind == "linear" else sigmoid_ramp(progress, length)


def tsa_threshold(progress: float, num_classes: int, schedule: Literal["linear", "exp", "log"]) -> float:
    """Returns UDA's threshold of training signal annealing, from 1/K to 1; `exp` rises late, `log` early."""
    released = {
        "linear": progress,
        "exp": math.exp(5 * (progress - 1)),
        "log": 1 - math.exp(-5 * progress),
    }[schedule]
    return released * (1 - 1 / num_classes) + 1 / num_classes


def draw_lambda(alpha: float, size: int, device: torch.device) -> Tensor:
    """Draws λ ~ Beta(α, α), [size]; at α = 0 it is 1, which mixes nothing."""
    if alpha == 0:
        return torch.ones(size, device=device)
    shape = torch.full((2, size), alpha, dtype=torch.float64, device=device)
    # Gamma(α) = Gamma(α + 1) · U^(1/α), in logarithms: for a small α the draws themselves underflow, and λ would be ½.
    own, other = torch._standard_gamma(shape + 1).log() + (1 - torch.rand_like(shape)).log() / alpha
    return torch.sigmoid(own - other).float()


def dominant_lambda(alpha: float, size: int, device: torch.device) -> Tensor:
    """Draws max(λ, 1 - λ), so that each mixed image stays closer to its first half."""
    lam = draw_lambda(alpha, size, device)
    return torch.maximum(lam, 1 - lam)


def mix(own: Tensor, other: Tensor, lam: Tensor) -> Tensor:
    """Returns λ · own + (1 - λ) · other; λ is one number, or one for each row."""
    return torch.lerp(other, own, lam.to(own.dtype).view(-1, *[1] * (own.ndim - 1)))


def mix_with_shuffled(images: Tensor, targets: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Mixes images and targets with a random order of themselves; λ is one number, or one for each image."""
    partner = torch.randperm(len(images), device=images.device)
    return mix(images, images[partner], lam), mix(targets, targets[partner], lam)


@contextlib.contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Keeps batch norm's running statistics unchanged within the block, while it still normalises by the batch."""
    tracking = [one for one in network.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def interleaved_forward(network: nn.Module, images: Tensor, batches: int) -> Tensor:
    """Returns the logits of all images, which pass the network as `batches` batches of every `batches`-th image.

    If images are ordered by kind, each batch holds its share of every kind. Batch norm normalises each batch by itself,
    and only the first updates the running statistics.
    """
    logits = [network(images[::batches])]
    with frozen_statistics(network):
        logits += [network(images[start::batches]) for start in range(1, batches)]
    order = torch.cat([torch.arange(start, len(images), batches) for start in range(batches)])
    return torch.cat(logits)[order.argsort().to(images.device, non_blocking=True)]


BATCHES = 128


class RunningMean(nn.Module):
    """The running mean of unaligned guesses over the last batches, and the distribution that it should have."""

    target: Tensor
    recent: Tensor
    count: Tensor

    def __init__(self, target: Sequence[float], batches: int = BATCHES) -> None:
        super().__init__()
        self.register_buffer("target", torch.tensor(target))
        self.register_buffer("recent", torch.zeros(batches, len(target)))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def align(self, probs: Tensor) -> Tensor:
        """Returns the guesses, aligned by the mean of the last batches including this one."""
        slot = (self.count % len(self.recent)).reshape(1)
        self.recent.index_copy_(0, slot, mean_over_ranks(probs.mean(dim=0))[None])
        self.count += 1
        mean = self.recent.sum(dim=0) / self.count.clamp_max(len(self.recent))
        return align_distribution(probs, self.target, mean)
