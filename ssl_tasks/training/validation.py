"""How good a network is on the validation images. The test images are never opened in training."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ssl_tasks.data.loading import normalise
from ssl_tasks.data.pools import Images
from ssl_tasks.distributed import rank, sum_over_ranks, world
from ssl_tasks.training.precision import autocast
from ssl_tasks.training.run import TrainingRun

BATCH = 256


@torch.no_grad()
def validate(run: TrainingRun) -> dict[str, float]:
    """Accuracy and cross-entropy of the evaluated network; nothing where there are no validation images."""
    pool = run.validation
    if not len(pool):
        return {}
    index = np.arange(rank(), len(pool), world())
    with evaluation_mode(run.evaluated()) as network:
        parts = [_score(run, network, pool, index[start : start + BATCH]) for start in range(0, len(index), BATCH)]
    total = torch.stack([torch.zeros(2, dtype=torch.float64, device=run.device), *parts]).sum(0)
    correct, loss = (sum_over_ranks(total) / len(pool)).tolist()
    return {"validation_accuracy": correct, "validation_loss": loss}


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[nn.Module]:
    """The network without its noise; afterwards every part is in the mode that it was in (a noisy teacher's, say)."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    yield network
    for module, mode in modes:
        module.training = mode


def _score(run: TrainingRun, network: nn.Module, pool: Images, index: np.ndarray) -> torch.Tensor:
    images = normalise(torch.from_numpy(pool.images(index)), run.device, run.mean, run.std)
    labels = torch.from_numpy(pool.labels[index]).to(run.device)
    with autocast(run.device, run.dtype):
        logits = network(images).float()
    right = (logits.argmax(1) == labels).sum()
    return torch.stack([right.double(), F.cross_entropy(logits, labels, reduction="sum").double()])
