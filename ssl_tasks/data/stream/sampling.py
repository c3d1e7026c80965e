"""Which sample comes when: endless draws over a pool, epoch after epoch, each in an order of its own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.splits.permutation import key_of, mix, permute

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Draw number d is an entry of the pool. Every epoch shows each copy of each entry once.

    Groups (classes, where these are drawn alike) take turns in an order of their own, and each has its own epochs.
    """

    key: int
    starts: Integers  # [groups] the first copy of each group
    sizes: Integers  # [groups] how many copies each has
    ends: Integers | None  # [entries] running sum of copies; None where each entry is there once
    order: Integers | None  # [entries] grouped by class; None where the pool's own order stands

    def entries(self, start: int, stop: int) -> Integers:
        """The entries of draws start … stop - 1."""
        draw = np.arange(start, stop, dtype=np.int64)
        groups = len(self.sizes)
        group = permute(draw % groups, groups, self._keys(draw // groups, 0)) if groups > 1 else np.zeros_like(draw)
        turn = draw // groups  # every group comes once in as many draws as there are groups
        size = self.sizes[group]
        copy = self.starts[group] + permute(turn % size, size, self._keys(turn // size, group + 1))
        entry = copy if self.ends is None else np.searchsorted(self.ends, copy, side="right")
        return entry if self.order is None else self.order[entry]

    def _keys(self, epoch: Integers, group: Integers | int) -> NDArray[np.uint64]:
        return mix(mix(epoch.astype(np.uint64) ^ np.uint64(self.key)) + np.uint64(group))


def build_sampler(
    seed: int, name: str, size: int, copies: Integers | None = None, classes: Integers | None = None
) -> Sampler:
    """Draws over `size` entries, `copies` of each where given, class by class alike where `classes` are."""
    order = None if classes is None else np.argsort(classes, kind="stable")
    counts = copies if copies is None or order is None else copies[order]
    ends = None if counts is None else np.cumsum(counts)
    if classes is None:
        bounds = np.array([0, size if ends is None else ends[-1]])
    else:
        edges = np.append(np.flatnonzero(np.diff(classes[order], prepend=-2)), size)
        bounds = edges if ends is None else np.append(0, ends)[edges]
    sizes = np.diff(bounds)
    return Sampler(key_of(seed, name), bounds[:-1][sizes > 0], sizes[sizes > 0], ends, order)
