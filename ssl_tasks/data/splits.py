"""Draws which samples are labelled, unlabelled, validation and test, and turns label texts into class numbers.

The draw is a keyed order of ids, so adding images moves no other image to another split. The numbers of validation and
test images follow from the number of images with a label, so an added label moves the borders. Labels can be made wrong
on purpose (`label_noise`), for methods that are built for it. A warning is logged if a given teacher was trained on
images that are validation or test images here.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selftrain.ssl_tasks.data.sources.base import SPLITS, Listing
from selftrain.ssl_tasks.errors import DamagedArtifact, DataError, brief, nearest
from selftrain.ssl_tasks.settings.data import SplitSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, Store, read_manifest

LABELED, UNLABELED, VALIDATION, TEST = range(len(SPLITS))
FREE = -1  # the source names no split: to be drawn


def hash_order(ids: Iterable[str], key: str) -> np.ndarray:
    """Returns a uint64 for each id that depends only on the id and the key; sorting by it is a shuffle."""
    keyed = hashlib.blake2b(digest_size=8, key=hashlib.sha256(key.encode()).digest())

    def digest(name: str) -> bytes:
        state = keyed.copy()
        state.update(name.encode("utf-8", "surrogatepass"))
        return state.digest()

    return np.frombuffer(b"".join(map(digest, ids)), ">u8").astype(np.uint64)


@dataclass(frozen=True)
class Candidates:
    """The facts about samples that the draw may use: arrays of equal length."""

    labels: np.ndarray  # int32, -1 without a label
    hints: np.ndarray  # int8: the source's own split, or FREE
    groups: np.ndarray  # int64: equal where the images are equal; -1 where unreadable
    order: np.ndarray  # uint64 of hash_order


def draw_splits(samples: Candidates, classes: int, settings: SplitSettings) -> np.ndarray:
    """Returns the split of every sample, int8.

    If the source names its test (or validation) images, no others are added. Of equal images only one is drawn; images
    that equal one of validation or test are never drawn.
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
    for queue, count in zip(
        left, counts, strict=True
    ):  # from the far end, because validation and test take from the near end
        split[queue[max(0, len(queue) - count) :]] = LABELED
    return split


def _queues(samples: Candidates, drawable: np.ndarray, classes: int) -> list[np.ndarray]:
    """Returns the drawable positions of each class in the keyed order, one for each distinct image."""
    positions = np.flatnonzero(drawable)
    positions = positions[np.argsort(samples.order[positions], kind="stable")]
    _, first = np.unique(samples.groups[positions], return_index=True)
    positions = positions[np.sort(first)]
    labels = samples.labels[positions]
    by_class = positions[np.argsort(labels, kind="stable")]
    return np.split(by_class, np.cumsum(np.bincount(labels, minlength=classes))[:-1])


def _held_out(share: float, sizes: list[int], free: list[int]) -> list[int]:
    """Returns how many images of each class go to a split.

    A share is taken of each class by itself, so that a growing class does not move the images of another. Every class
    of three or more gives at least one, and keeps at least one for training."""
    if share >= 1:
        wanted = proportional(int(share), sizes)
    else:
        wanted = [max(int(share > 0 and size >= 3), int(share * size + 0.5)) for size in sizes]
    return [max(0, min(count, rest - 1)) for count, rest in zip(wanted, free, strict=True)]


def proportional(total: int, sizes: list[int]) -> list[int]:
    """Divides `total` in proportion to `sizes`, by largest remainders; a part never exceeds its size."""
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
    """Returns how many images of each class are labelled; None means all with a label."""
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
    """Returns, for each sample, the position of an equal image that is held out from it, else -1.

    Training never uses an image of validation or test, and validation none of test.
    """
    shadow = np.full(len(split), -1, np.int64)
    for held, from_ in ((VALIDATION, (LABELED, UNLABELED)), (TEST, (LABELED, UNLABELED, VALIDATION))):
        owners = np.flatnonzero((split == held) & (groups >= 0))
        first = np.full(groups.max(initial=-1) + 2, -1, np.int64)  # the last entry is for group -1
        first[groups[owners[::-1]]] = owners[::-1]
        found = first[groups]
        shadow = np.where(np.isin(split, from_) & (found >= 0), found, shadow)
    return shadow


def shortages(
    samples: Candidates, split: np.ndarray, usable: np.ndarray, classes: tuple[str, ...], settings: SplitSettings
) -> list[str]:
    """Returns one line for each class without labels, or with fewer labels than the settings ask for."""
    left = usable & np.isin(split, (LABELED, UNLABELED)) & (samples.labels >= 0)
    left &= np.isin(samples.hints, (FREE, LABELED))
    available = [len(queue) for queue in _queues(samples, left, len(classes))]
    wanted = labeled_counts(available, settings)
    if wanted is None:  # nothing is drawn: an image under two classes is labelled in both
        available = np.bincount(samples.labels[left], minlength=len(classes)).tolist()
        wanted = [1] * len(classes)
    return [
        f"class '{name}' has {has} labelled training images; expected at least {needs}"
        for name, has, needs in zip(classes, available, wanted, strict=True)
        if has < needs
    ]


def flip_labels(labels: np.ndarray, ids: list[str], classes: int, share: float, seed: int) -> np.ndarray:
    """Changes each label, with probability `share`, to another class; it depends only on the id and the seed."""
    chance = hash_order(ids, f"label noise {seed}") / 2.0**64
    shift = 1 + hash_order(ids, f"wrong label {seed}") % np.uint64(max(1, classes - 1))
    wrong = (labels + shift.astype(np.int64)) % classes
    return np.where(chance < share, wrong, labels).astype(labels.dtype)


def sort_classes(names: list[str]) -> tuple[str, ...]:
    """Sorts class names: numbers by value, then words alphabetically."""
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)))


def lookalikes(names: Sequence[str]) -> tuple[str, ...]:
    """Returns a note on each group of classes that differ only in case or in blanks: perhaps they are meant to be
    one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    return tuple(
        f"{len(group)} classes differ only in case or blanks: " + brief([f"'{name}'" for name in group])
        for group in groups.values()
        if len(group) > 1
    )


def encode(listing: Listing, wanted: tuple[str, ...] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the class list, and every sample's number in it: int32, -1 where there is no label."""
    found = [name for name in pc.unique(listing.labels).to_pylist() if name is not None]
    if not found:
        raise DataError(
            f"none of {len(listing)} samples has a label; expected some for each class. "
            "Label a few images, or check which column or folder holds the labels"
        )
    classes = wanted or listing.classes or sort_classes(found)
    if len(set(classes)) < len(classes):
        raise DataError(f"the class list names a class twice: {', '.join(classes)}; expected each class once")
    if wanted and set(found).isdisjoint(wanted) and all(name.isdecimal() and int(name) < len(wanted) for name in found):
        return wanted, _codes(listing.labels, tuple(str(number) for number in range(len(wanted))))
    strange = sorted(set(found) - set(classes))
    if strange:
        raise DataError(
            f"{len(strange)} labels are not in the class list, for example "
            f"'{strange[0]}'.{nearest(strange[0], classes)} "
            "Correct them, or add them to data.classes"
        )
    if len(classes) < 2:
        raise DataError(f"found one class, '{classes[0]}'; expected two or more")
    return classes, _codes(listing.labels, classes)


def _codes(labels: pa.Array, classes: tuple[str, ...]) -> np.ndarray:
    codes = pc.fill_null(pc.index_in(labels, pa.array(classes, pa.string())), -1)
    return codes.to_numpy().astype(np.int32)


HELD_OUT = ("validation", "test")
log = logging.getLogger("selftrain")


def warn_of_earlier_labels(model: Path, dataset: Artifact) -> None:
    """Warns when a given teacher was trained on images that are validation or test images here."""
    with contextlib.suppress(OSError, DamagedArtifact):
        if known := earlier_labels(model, dataset):
            log.warning(
                "%s was trained on the labels of %s images of this data set, so its accuracy there is too "
                "high. Train a new "
                "teacher, and name the validation and test images in the source",
                model,
                " and ".join(f"{count} {name}" for name, count in known.items()),
            )


def earlier_labels(model: Path, dataset: Artifact) -> dict[str, int]:
    """Returns how many images of each split were labelled images when a given model was trained."""
    earlier = trained_on(model.resolve())
    if earlier is None:
        return {}
    changed = [name for name in HELD_OUT if earlier.parts.get(name) != dataset.parts[name]]
    learned = contents(earlier, "labeled") if changed else None
    found = {name: pc.sum(pc.is_in(contents(dataset, name), learned)).as_py() for name in changed}
    return {name: count for name, count in found.items() if count}


def trained_on(model: Path) -> Artifact | None:
    """Returns the data set from which a model in a store was made; None elsewhere, and where it was cleaned away."""
    made = read_manifest(model)["inputs"].get("dataset")
    return None if made is None else Store(model.parents[1]).unchecked(made["stage"], made["key"])


def contents(dataset: Artifact, split: str) -> pa.ChunkedArray:
    """Returns the contents of the readable images of a split."""
    rows = pq.read_table(dataset.file("manifest.parquet"), columns=["content"], filters=[("split", "==", split)])
    return rows["content"].drop_null()
