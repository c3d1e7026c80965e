"""What CTAugment has learnt, and how the workers that draw the views come to know it.

Workers build batches ahead of the step that learns. So that a batch stays a pure function of its step, the rates that
it is drawn from are those of a fixed step in the past: in period m (steps m·REFRESH …), the rates as they were at the
beginning of period m - 1. The two newest tables lie in shared memory; a worker that is further ahead than a period
waits. A run that was stopped continues from the buffers, which are saved with the method's.
"""

import os
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selftrain.ssl_tasks.data.batch import Views
from selftrain.ssl_tasks.data.views.ctaugment import BINS, DECAY, fresh_rates
from selftrain.ssl_tasks.settings.data import AugmentSettings

REFRESH = 32  # steps: more than workers read ahead, much less than a rate takes to move
BLOCK = 1024  # scores that are folded in at once


class PolicyBoard:
    """Tables of rates in shared memory, written by the trainer and read by its workers."""

    def __init__(self) -> None:
        self.tables = torch.from_numpy(np.stack([fresh_rates()] * 2)).share_memory_()
        self.version = torch.zeros(1, dtype=torch.int64).share_memory_()

    def at(self, step: int) -> NDArray[np.float32]:
        """The rates that the batch of a step is drawn from."""
        wanted, parent = max(0, step // REFRESH - 1), os.getppid()
        while int(self.version) < wanted:
            if os.getppid() != parent:
                raise SystemExit("the process that trains is gone")
            time.sleep(0.001)
        return self.tables[wanted % 2].numpy()


class Policy(nn.Module):
    """The rates, moved by every step's probes. On the device: learning waits for nothing but a table's publication."""

    rates: Tensor
    published: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.board = PolicyBoard()
        self.register_buffer("rates", torch.from_numpy(fresh_rates()))
        self.register_buffer("published", self.board.tables.clone())

    def open(self, step: int) -> None:
        """Puts on the board what the batches from `step` on are drawn from."""
        self.board.tables.copy_(self.published)
        self.board.version.fill_(step // REFRESH)

    @torch.no_grad()
    def learn(self, done: int, choices: Tensor, scores: Tensor) -> None:
        """Folds in what the probes of a step say, [n, depth, 2] and [n]; `done` steps are behind us now."""
        cells = (choices[..., 0] * BINS + choices[..., 1]).flatten()
        repeated = scores.float().repeat_interleave(choices.shape[1])
        for part, score in zip(cells.split(BLOCK), repeated.split(BLOCK), strict=True):
            self.rates.copy_(moved_rates(self.rates, part, score))
        if done % REFRESH == 0:
            version = done // REFRESH
            self.published[version % 2] = self.rates
            self.board.tables[version % 2] = self.rates.cpu()
            self.board.version.fill_(version)


def moved_rates(rates: Tensor, cells: Tensor, scores: Tensor) -> Tensor:
    """rate ← decay · rate + (1 - decay) · score, for one score after the other, all at once.

    A score that k later ones of the same cell follow has weight (1 - decay) · decay^k in the end.
    """
    same = cells[:, None] == cells[None, :]
    later = same.triu(1).sum(dim=1)
    taken = nn.functional.one_hot(cells, rates.numel()).float()  # a product is deterministic on CUDA, a scatter is not
    gained = ((1 - DECAY) * DECAY**later * scores) @ taken
    return (rates.flatten() * DECAY ** taken.sum(dim=0) + gained).view_as(rates)


def build_policy(augment: AugmentSettings, views: Views) -> Policy | None:
    """A policy where strong views are CTAugment's, and there are any."""
    strong = "strong" in {*views.labeled, *views.unlabeled, *views.pseudo}
    return Policy() if augment.strong == "ctaugment" and strong and augment.operations else None
