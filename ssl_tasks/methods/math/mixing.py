"""MixUp as MixMatch and its descendants use it, and forward passes in interleaved batches."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def draw_lambda(alpha: float, size: int, device: torch.device) -> Tensor:
    """λ ~ Beta(α, α), [size]; at α = 0 it is 1, which mixes nothing."""
    if alpha == 0:
        return torch.ones(size, device=device)
    shape = torch.full((2, size), alpha, dtype=torch.float64, device=device)
    # Gamma(α) = Gamma(α + 1) · U^(1/α), in logarithms: for a small α the draws themselves underflow, and λ would be ½.
    own, other = torch._standard_gamma(shape + 1).log() + (1 - torch.rand_like(shape)).log() / alpha
    return torch.sigmoid(own - other).float()


def dominant_lambda(alpha: float, size: int, device: torch.device) -> Tensor:
    """max(λ, 1 - λ), so that each mixed image stays closer to its first half."""
    lam = draw_lambda(alpha, size, device)
    return torch.maximum(lam, 1 - lam)


def mix(own: Tensor, other: Tensor, lam: Tensor) -> Tensor:
    """λ · own + (1 - λ) · other; λ is one number, or one for each row."""
    return torch.lerp(other, own, lam.to(own.dtype).view(-1, *[1] * (own.ndim - 1)))


def mix_with_shuffled(images: Tensor, targets: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Images and targets mixed with a random order of themselves; λ is one number, or one for each image."""
    partner = torch.randperm(len(images), device=images.device)
    return mix(images, images[partner], lam), mix(targets, targets[partner], lam)


@contextlib.contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm in train mode keeps normalising by the batch but leaves its running statistics alone."""
    tracking = [one for one in network.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def interleaved_forward(network: nn.Module, images: Tensor, batches: int) -> Tensor:
    """The logits of all images, which pass the network as `batches` batches of every `batches`-th image.

    Images ordered by kind are so spread that each batch holds its share of every kind. Batch norm normalises each
    batch by itself, and the first alone moves the running statistics.
    """
    logits = [network(images[::batches])]
    with frozen_statistics(network):
        logits += [network(images[start::batches]) for start in range(1, batches)]
    order = torch.cat([torch.arange(start, len(images), batches) for start in range(batches)])
    return torch.cat(logits)[order.argsort().to(images.device, non_blocking=True)]
