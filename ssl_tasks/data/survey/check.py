"""The data check: what a source holds and what is wrong with it, before anything is trained on it."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selftrain.ssl_tasks.data.manifest import count_splits
from selftrain.ssl_tasks.data.sources.base import SPLITS
from selftrain.ssl_tasks.data.splits.split import LABELED
from selftrain.ssl_tasks.data.survey.survey import Survey, survey
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.settings.runtime import RuntimeSettings

FEW_LABELS = 4  # the smallest budget for which results are published
SHOWN = 1000  # entries of a list; counts are always whole


@dataclass(frozen=True)
class DataReport:
    """What the check found. Lists hold the first thousand entries; `counts` and `totals` are whole."""

    classes: tuple[str, ...]
    image_size: int
    channels: int
    counts: dict[str, Any]  # split → images, unreadable, in_held_out, per_class
    totals: dict[str, int]  # images, unreadable, duplicates, conflicts, leaks
    unreadable: list[tuple[str, str]]  # sample id, reason
    duplicates: list[list[str]]  # ids of images that are equal
    conflicts: list[list[tuple[str, str]]]  # equal images with different labels: sample id, label
    leaks: list[tuple[str, str, str, str]]  # sample id, split, and the equal image that is held out: sample id, split
    few_labels: dict[str, int]  # class → labelled images, where these are fewer than four
    sizes: dict[str, int]  # width x height → images, the most frequent first
    modes: dict[str, int]  # as Pillow names them → images
    notes: tuple[str, ...]  # what was passed over
    problems: tuple[str, ...]  # why a run would fail

    @property
    def ok(self) -> bool:
        """Whether a run would accept the data."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}


def check_data(settings: DataSettings, cache: Path, runtime: RuntimeSettings | None = None) -> DataReport:
    """Looks at every image of the source as a run would. Raises DataError only where there is nothing to report on."""
    found = survey(settings, cache, runtime or RuntimeSettings())
    ids = found.listing.ids
    bad = np.flatnonzero(found.samples.groups < 0)
    leaks = np.flatnonzero(found.shadow >= 0)
    copies = _copies(found.samples.groups)
    conflicts = [group for group in copies if len(set(_labels(found, group))) > 1]
    counts = count_splits(found)
    few = {
        name: count
        for name, count in zip(found.classes, counts[SPLITS[LABELED]]["per_class"], strict=True)
        if count < FEW_LABELS
    }
    totals = {
        "images": len(found.listing),
        "unreadable": len(bad),
        "duplicates": sum(len(group) - 1 for group in copies),
        "conflicts": len(conflicts),
        "leaks": len(leaks),
    }
    return DataReport(
        classes=found.classes,
        image_size=found.decoder.image_size,
        channels=found.decoder.channels,
        counts=counts,
        totals=totals,
        unreadable=list(zip(_take(ids, bad[:SHOWN]), _take(found.swept.errors, bad[:SHOWN]), strict=True)),
        duplicates=[_take(ids, group) for group in copies[:SHOWN]],
        conflicts=[_named(found, group) for group in conflicts[:SHOWN]],
        leaks=[_leak(found, at) for at in leaks[:SHOWN].tolist()],
        few_labels=few,
        sizes=_sizes(found),
        modes=dict(Counter(mode for mode in found.swept.mode.to_pylist() if mode).most_common()),
        notes=found.listing.notes,
        problems=found.problems,
    )


def _take(column: pa.Array, positions: np.ndarray) -> list[str]:
    return column.take(pa.array(positions)).to_pylist()


def _copies(groups: np.ndarray) -> list[np.ndarray]:
    """The positions of equal images, two or more together."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    several = np.flatnonzero((counts > 1) & (groups[order][starts] >= 0))
    return [order[starts[at] : starts[at] + counts[at]] for at in several]


def _labels(found: Survey, group: np.ndarray) -> list[int]:
    return [code for code in found.samples.labels[group].tolist() if code >= 0]


def _named(found: Survey, group: np.ndarray) -> list[tuple[str, str]]:
    codes = found.samples.labels[group].tolist()
    names = _take(found.listing.ids, group)
    return [(name, found.classes[code]) for name, code in zip(names, codes, strict=True) if code >= 0]


def _leak(found: Survey, at: int) -> tuple[str, str, str, str]:
    owner = int(found.shadow[at])
    ids, split = found.listing.ids, found.split
    return ids[at].as_py(), SPLITS[split[at]], ids[owner].as_py(), SPLITS[split[owner]]


def _sizes(found: Survey) -> dict[str, int]:
    readable = found.samples.groups >= 0
    pairs = np.stack([found.swept.width.to_numpy()[readable], found.swept.height.to_numpy()[readable]])
    sizes, counts = np.unique(pairs, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:SHOWN]
    return {f"{sizes[0, at]}x{sizes[1, at]}": int(counts[at]) for at in order}
