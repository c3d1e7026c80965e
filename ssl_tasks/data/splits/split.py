"""Who is labelled, unlabelled, validation or test: drawn by a keyed order of ids that no added image stirs.

How many of the order are validation and test follows from how many have a label, so an added label moves the borders.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from selftrain.ssl_tasks.data.sources.base import SPLITS
from selftrain.ssl_tasks.settings.data import SplitSettings

LABELED, UNLABELED, VALIDATION, TEST = range(len(SPLITS))
FREE = -1  # the source says nothing: to be drawn


def hash_order(ids: Iterable[str], key: str) -> np.ndarray:
    """A uint64 for each id that depends on nothing but the id and the key: sorting by it is a shuffle."""
    keyed = hashlib.blake2b(digest_size=8, key=hashlib.sha256(key.encode()).digest())

    def digest(name: str) -> bytes:
        state = keyed.copy()
        state.update(name.encode("utf-8", "surrogatepass"))
        return state.digest()

    return np.frombuffer(b"".join(map(digest, ids)), ">u8").astype(np.uint64)


@dataclass(frozen=True)
class Candidates:
    """What the draw may know of every sample: plain arrays of one length."""

    labels: np.ndarray  # int32, -1 where there is none
    hints: np.ndarray  # int8: the source's own split, or FREE
    groups: np.ndarray  # int64: equal where the images are equal; -1 where unreadable
    order: np.ndarray  # uint64 of hash_order


def draw_splits(samples: Candidates, classes: int, settings: SplitSettings) -> np.ndarray:
    """The split of every sample, int8.

    Where the source names its test (or validation) images, these are all of them. Of equal images one stands for all in
    the draw; images that equal one of validation or test are never drawn.
    """
    split = np.where(samples.hints == FREE, UNLABELED, samples.hints).astype(np.int8)
    held = np.isin(split, (VALIDATION, TEST))
    drawable = (samples.labels >= 0) & np.isin(samples.hints, (FREE, LABELED)) & (samples.groups >= 0)
    drawable &= ~np.isin(samples.groups, samples.groups[held & (samples.groups >= 0)])
    queues = _queues(samples, drawable, classes)
    free = [queue[samples.hints[queue] == FREE] for queue in queues]
    for name, share in ((TEST, settings.test), (VALIDATION, settings.validation)):
        if not (split == name).any():
            for label, count in enumerate(_held_out(share, [len(q) for q in queues], [len(q) for q in free])):
                split[free[label][:count]] = name
                free[label] = free[label][count:]
    left = [queue[~np.isin(split[queue], (VALIDATION, TEST))] for queue in queues]
    counts = labeled_counts([len(queue) for queue in left], settings)
    if counts is None:
        rest = (samples.labels >= 0) & np.isin(samples.hints, (FREE, LABELED))
        split[rest & ~np.isin(split, (VALIDATION, TEST))] = LABELED
        return split
    split[split == LABELED] = UNLABELED
    for queue, count in zip(left, counts, strict=True):  # from the far end: the nearer one feeds validation and test
        split[queue[max(0, len(queue) - count) :]] = LABELED
    return split


def _queues(samples: Candidates, drawable: np.ndarray, classes: int) -> list[np.ndarray]:
    """The drawable positions of each class in the keyed order, one for each distinct image."""
    positions = np.flatnonzero(drawable)
    positions = positions[np.argsort(samples.order[positions], kind="stable")]
    _, first = np.unique(samples.groups[positions], return_index=True)
    positions = positions[np.sort(first)]
    labels = samples.labels[positions]
    by_class = positions[np.argsort(labels, kind="stable")]
    return np.split(by_class, np.cumsum(np.bincount(labels, minlength=classes))[:-1])


def _held_out(share: float, sizes: list[int], free: list[int]) -> list[int]:
    """How many of each class are held out. A share is taken of each class alone, so that a class that grows moves no
    other; every class of three or more gives at least one, and keeps at least one for training."""
    if share >= 1:
        wanted = proportional(int(share), sizes)
    else:
        wanted = [max(int(share > 0 and size >= 3), int(share * size + 0.5)) for size in sizes]
    return [max(0, min(count, rest - 1)) for count, rest in zip(wanted, free, strict=True)]


def proportional(total: int, sizes: list[int]) -> list[int]:
    """`total` in proportion to `sizes`, by largest remainders; never more than a size."""
    whole = sum(sizes)
    if total >= whole:
        return list(sizes)
    shares = [total * size / whole for size in sizes]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda label: (counts[label] - shares[label], label))
    for label in by_remainder[: total - sum(counts)]:
        counts[label] += 1
    return counts


def labeled_counts(available: list[int], settings: SplitSettings) -> list[int] | None:
    """How many of each class are labelled; None: all that have a label."""
    budget, fraction, K = settings.labels_per_class, settings.labeled_fraction, len(available)
    if settings.strategy == "long_tailed":
        decay = settings.imbalance ** (-np.arange(K) / max(1, K - 1))
        if budget is not None:
            head = float(budget)
        elif fraction is not None:
            head = fraction * sum(available) / float(decay.sum())
        else:  # the longest head that every class can follow
            head = min(count / float(share) for count, share in zip(available, decay, strict=True))
        return [max(1, int(head * share + 1e-9)) for share in decay.tolist()]
    if budget is None and fraction is None:
        return None
    if settings.strategy == "balanced":
        if budget is not None:
            return [budget] * K
        assert fraction is not None
        each = max(1, int(fraction * sum(available) / K + 0.5))
        return [min(each, count) for count in available]
    total = budget * K if budget is not None else int((fraction or 0.0) * sum(available) + 0.5)
    return [max(1, count) for count in proportional(total, available)]


def shadowed(groups: np.ndarray, split: np.ndarray) -> np.ndarray:
    """For each sample the position of an equal image that is held out from it, else -1.

    Training never sees an image of validation or test, and validation none of test.
    """
    shadow = np.full(len(split), -1, np.int64)
    for held, from_ in ((VALIDATION, (LABELED, UNLABELED)), (TEST, (LABELED, UNLABELED, VALIDATION))):
        owners = np.flatnonzero((split == held) & (groups >= 0))
        first = np.full(groups.max(initial=-1) + 2, -1, np.int64)  # the last entry answers for group -1
        first[groups[owners[::-1]]] = owners[::-1]
        found = first[groups]
        shadow = np.where(np.isin(split, from_) & (found >= 0), found, shadow)
    return shadow


def shortages(
    samples: Candidates, split: np.ndarray, usable: np.ndarray, classes: tuple[str, ...], settings: SplitSettings
) -> list[str]:
    """One line for each class that cannot give the labels that were asked for, or that has none."""
    left = usable & np.isin(split, (LABELED, UNLABELED)) & (samples.labels >= 0)
    left &= np.isin(samples.hints, (FREE, LABELED))
    available = [len(queue) for queue in _queues(samples, left, len(classes))]
    wanted = labeled_counts(available, settings)
    if wanted is None:  # nothing is drawn: an image under two classes is labelled in both
        available = np.bincount(samples.labels[left], minlength=len(classes)).tolist()
        wanted = [1] * len(classes)
    return [
        f"class '{name}' has {has} images with a label for training, {needs} are needed"
        for name, has, needs in zip(classes, available, wanted, strict=True)
        if has < needs
    ]
