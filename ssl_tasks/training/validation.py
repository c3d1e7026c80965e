"""Accuracy on the validation images, and near the end of a run on the test images if the recipe asks for it.

Training opens the test images for `train.median_of` alone, the protocol of printed numbers; nothing is chosen by them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from selftrain.ssl_tasks.data.stream.loading import normalise
from selftrain.ssl_tasks.data.stream.pools import Images
from selftrain.ssl_tasks.execution.devices import autocast
from selftrain.ssl_tasks.execution.distributed import rank, sum_over_ranks, world
from selftrain.ssl_tasks.training.run import TrainingRun

BATCH = 256


@torch.no_grad()
def validate(run: TrainingRun) -> dict[str, float]:
    """Accuracy and cross-entropy of the evaluated network on every split that is due; nothing of one without images."""
    scores: dict[str, float] = {}
    for split, pool in (("validation", run.validation), ("test", run.test if among_the_last(run) else None)):
        if pool is not None and len(known := np.flatnonzero(pool.labels >= 0)):
            correct, loss = _measure(run, pool, known)
            scores |= {f"{split}_accuracy": correct, f"{split}_loss": loss}
    return scores


def among_the_last(run: TrainingRun) -> bool:
    """Whether this evaluation is one of the last `train.median_of`."""
    train = run.learner.train
    return math.ceil((train.steps - run.state.step) / train.evaluate_every) < (train.median_of or 0)


def _measure(run: TrainingRun, pool: Images, known: np.ndarray) -> tuple[float, float]:
    index = known[rank() :: world()]
    with evaluation_mode(run.evaluated()) as network:
        parts = [_score(run, network, pool, index[start : start + BATCH]) for start in range(0, len(index), BATCH)]
    total = torch.stack([torch.zeros(2, dtype=torch.float64, device=run.device), *parts]).sum(0)
    correct, loss = (sum_over_ranks(total) / len(known)).tolist()
    return correct, loss


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
