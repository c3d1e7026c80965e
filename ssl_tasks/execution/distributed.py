"""Exchanges tensors between training processes; with one process, every function returns its argument unchanged.

Nothing here is differentiable. All ranks must call the same functions in the same order.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def grouped() -> bool:
    """Returns whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns this process's number, from 0."""
    return dist.get_rank() if grouped() else 0


def world() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if grouped() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Returns the sum of all ranks' tensors, on every rank; the argument is not changed."""
    if not grouped():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Returns the mean of all ranks' tensors, on every rank."""
    return sum_over_ranks(tensor) / world() if grouped() else tensor


def gather_rows(tensor: Tensor) -> Tensor:
    """Returns the rows of all ranks, in the order of the ranks, which may have different numbers of rows."""
    if not grouped():
        return tensor
    tensor = tensor.detach().contiguous()
    counts = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
    sizes = [int(count) for count in counts]
    padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    rows = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(rows, padded)
    return torch.cat([one[:size] for one, size in zip(rows, sizes, strict=True)])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over all ranks, in one message after all backward passes.

    DistributedDataParallel sends gradients during the backward pass, but it supports a single forward pass per step.
    Our methods run several: some without gradient, some through `features` and `head` separately, some with gradients
    of gradients. Over gloo this is no slower (WRN-28-2, two processes: 494 ms a step, DistributedDataParallel 513 ms).
    Over NCCL it loses the overlap of sending and computing. A gradient that exists on some ranks only counts as zero on
    the others. A parameter without a gradient on any rank keeps none, so the optimizer skips it as in a single process.
    """
    if not grouped():
        return
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    device = wanted[0].device
    present = torch.tensor([float(parameter.grad is not None) for parameter in wanted], device=device)
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in wanted]
    flat = torch.cat([present, *(grad.reshape(-1).float() for grad in grads)])
    dist.all_reduce(flat)
    present, *means = flat.split([len(wanted), *(parameter.numel() for parameter in wanted)])
    for parameter, grad, mean, count in zip(wanted, grads, means, present.tolist(), strict=True):
        if count:
            parameter.grad = grad.copy_(mean.view_as(grad) / world())


def average_buffers(module: nn.Module) -> None:
    """Replaces each floating-point buffer, such as running statistics, by its mean over all ranks."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not grouped() or not buffers:
        return
    flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer) / world())
