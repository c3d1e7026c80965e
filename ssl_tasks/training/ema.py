"""The exponential moving average of a network's weights: what is evaluated, and what a mean teacher is."""

import copy
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def warmed_decay(decay: float, updates: int, warmup: bool) -> float:
    """min(1 - 1/(t + 1), d) at update t = 1, 2, …: a plain mean of the first weights, then the moving one."""
    return min(1 - 1 / (updates + 1), decay) if warmup else decay


def frozen_copy(network: Network) -> Network:
    """A copy that no gradient reaches, in evaluation mode."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def move_average(
    average: nn.Module, network: nn.Module, decay: float, buffers: Literal["copy", "average"] = "copy"
) -> None:
    """average ← decay · average + (1 - decay) · network; buffers (running statistics) are copied or averaged alike."""
    pairs: list[tuple[Tensor, Tensor]] = list(zip(average.parameters(), network.parameters(), strict=True))
    others = list(zip(average.buffers(), network.buffers(), strict=True))
    if buffers == "average":
        pairs += [pair for pair in others if pair[0].is_floating_point()]
        others = [pair for pair in others if not pair[0].is_floating_point()]
    _lerp(pairs, 1 - decay)
    if others:
        torch._foreach_copy_([mine for mine, _ in others], [theirs for _, theirs in others])


def _lerp(pairs: list[tuple[Tensor, Tensor]], weight: float) -> None:
    if pairs:
        torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], weight)
