"""From labels as they are written to class numbers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selftrain.ssl_tasks.data.sources.base import Listing
from selftrain.ssl_tasks.errors import DataError, brief, nearest


def sort_classes(names: list[str]) -> tuple[str, ...]:
    """Numbers by their value, before words in their order."""
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)))


def lookalikes(names: Sequence[str]) -> tuple[str, ...]:
    """A note on each group of classes that differ only in case or in blanks: perhaps they are meant to be one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    return tuple(
        f"{len(group)} classes differ only in case or blanks: " + brief([f"'{name}'" for name in group])
        for group in groups.values()
        if len(group) > 1
    )


def encode(listing: Listing, wanted: tuple[str, ...] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """The class list, and every sample's number in it: int32, -1 where there is no label."""
    found = [name for name in pc.unique(listing.labels).to_pylist() if name is not None]
    if not found:
        raise DataError(
            f"none of {len(listing)} samples has a label; expected some for each class. "
            "Label a few images, or check which column or folder holds the labels"
        )
    classes = wanted or listing.classes or sort_classes(found)
    if len(set(classes)) < len(classes):
        raise DataError(f"the class list names a class twice: {', '.join(classes)}")
    if wanted and set(found).isdisjoint(wanted) and all(name.isdecimal() and int(name) < len(wanted) for name in found):
        return wanted, _codes(listing.labels, tuple(str(number) for number in range(len(wanted))))
    strange = sorted(set(found) - set(classes))
    if strange:
        raise DataError(
            f"{len(strange)} labels are not in the class list, as '{strange[0]}'.{nearest(strange[0], classes)} "
            "Correct them, or name them in data.classes"
        )
    if len(classes) < 2:
        raise DataError(f"there is one class, '{classes[0]}'; a classifier needs two or more")
    return classes, _codes(listing.labels, classes)


def _codes(labels: pa.Array, classes: tuple[str, ...]) -> np.ndarray:
    codes = pc.fill_null(pc.index_in(labels, pa.array(classes, pa.string())), -1)
    return codes.to_numpy().astype(np.int32)
