"""Makes random numbers and orders of samples that are pure functions of a seed and names.

An order needs no array, because the sample at a position is computed. Endless draws from a pool pass through it epoch
by epoch, each in its own order.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


def _digest(names: Iterable[object], size: int) -> bytes:
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def key_of(*names: object) -> int:
    """Returns a 64-bit key from a seed and names."""
    return int.from_bytes(_digest(names, 8), "little")


def uniform_rows(start: int, stop: int, width: int, seed: int, *names: object) -> NDArray[np.float64]:
    """Returns rows start … stop of an endless table of numbers in [0, 1), which (seed, names) identifies.

    A row does not depend on the other rows requested, so a batch that is split over processes is still one batch.
    """
    bits = np.random.Philox(key=np.frombuffer(_digest((seed, *names), 16), np.uint64))
    blocks = -(-width // 4)  # Philox makes four numbers at a time, and can jump ahead
    bits.advance(start * blocks)
    return np.random.Generator(bits).random((stop - start, 4 * blocks))[:, :width]


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies splitmix64's finaliser: every bit of the result depends on every bit of the value."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def permute(
    index: NDArray[np.int64], size: int | NDArray[np.int64], key: int | NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Applies a keyed permutation of 0 … size - 1 to each index; sizes and keys may differ from index to index.

    A Feistel network on a grid of rows × columns just larger than `size`; values outside are permuted again until
    inside.
    """
    index, size = np.broadcast_arrays(np.asarray(index, np.int64), np.asarray(size, np.int64))
    key = np.broadcast_to(np.asarray(key, np.uint64), index.shape)
    columns = np.ceil(np.sqrt(size)).astype(np.uint64)
    rows = (size.astype(np.uint64) + columns - np.uint64(1)) // columns
    result = index.astype(np.uint64)
    walking = np.arange(result.size)
    while walking.size:
        moved = _feistel(result[walking], rows[walking], columns[walking], key[walking])
        result[walking] = moved
        walking = walking[moved >= size[walking].astype(np.uint64)]
    return result.astype(np.int64)


def _feistel(
    index: NDArray[np.uint64], rows: NDArray[np.uint64], columns: NDArray[np.uint64], key: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    row, column = index // columns, index % columns
    for number in range(0, ROUNDS, 2):
        row = (row + mix(column ^ mix(key + np.uint64(number))) % rows) % rows
        column = (column + mix(row ^ mix(key + np.uint64(number + 1))) % columns) % columns
    return row * columns + column


Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Maps draw number d to an entry of the pool. Every epoch has each copy of each entry once.

    Groups take turns in an order of their own, and each has its own epochs. They are the classes if these are drawn
    equally often.
    """

    key: int
    starts: Integers  # [groups] the first copy of each group
    sizes: Integers  # [groups] number of copies in each group
    ends: Integers | None  # [entries] running sum of copies; None if each entry occurs once
    order: Integers | None  # [entries] grouped by class; None for the pool's own order

    def entries(self, start: int, stop: int) -> Integers:
        """Returns the entries of draws start … stop - 1."""
        draw = np.arange(start, stop, dtype=np.int64)
        groups = len(self.sizes)
        group = permute(draw % groups, groups, self._keys(draw // groups, 0)) if groups > 1 else np.zeros_like(draw)
        turn = draw // groups  # each run of `groups` draws has every group once
        size = self.sizes[group]
        copy = self.starts[group] + permute(turn % size, size, self._keys(turn // size, group + 1))
        entry = copy if self.ends is None else np.searchsorted(self.ends, copy, side="right")
        return entry if self.order is None else self.order[entry]

    def _keys(self, epoch: Integers, group: Integers | int) -> NDArray[np.uint64]:
        return mix(mix(epoch.astype(np.uint64) ^ np.uint64(self.key)) + np.uint64(group))


def build_sampler(
    seed: int, name: str, size: int, copies: Integers | None = None, classes: Integers | None = None
) -> Sampler:
    """Returns a sampler over `size` entries, `copies` of each; with `classes`, all classes are drawn equally often."""
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
