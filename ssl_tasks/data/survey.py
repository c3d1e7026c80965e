"""Surveys every image of a source: contents, unreadable files, splits; and reports its problems (`selftrain data`).

The dataset stage stores the survey, and the data check prints it, so both report the same findings.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selftrain.ssl_tasks.data import splits
from selftrain.ssl_tasks.data.decode import Decoder, probe, quiet_decoding
from selftrain.ssl_tasks.data.images import Progress, Swept, silent, sweep
from selftrain.ssl_tasks.data.sources import open_source
from selftrain.ssl_tasks.data.sources.base import SPLITS, ImageSource, Listing
from selftrain.ssl_tasks.data.sources.folder import ROLES
from selftrain.ssl_tasks.data.splits import (
    FREE,
    LABELED,
    TEST,
    UNLABELED,
    Candidates,
    draw_splits,
    flip_labels,
    hash_order,
    shadowed,
    shortages,
)
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.file_digests import FileDigests

PROBES = 256
LARGEST_DEFAULT = 224


@dataclass(frozen=True)
class Survey:
    """The known facts about every sample, column by column."""

    source: ImageSource
    listing: Listing
    classes: tuple[str, ...]
    decoder: Decoder
    swept: Swept
    samples: Candidates
    split: np.ndarray  # int8, an index into SPLITS
    shadow: np.ndarray  # int64: an equal image that is held out from this one, else -1
    given: np.ndarray  # int32: the labels that training gets, including those that are wrong on purpose
    problems: tuple[str, ...]  # why this data cannot be trained on
    source_counts: Mapping[str, int]  # images of each split in the source, of which these may be a sample

    @property
    def usable(self) -> np.ndarray:
        """Returns whether each sample will be in a pool."""
        return (self.samples.groups >= 0) & (self.shadow < 0)

    @property
    def errors(self) -> pa.Array:
        """Returns why each sample is not used; null if it is used."""
        hidden = self.shadow >= 0
        owners = self.shadow[hidden]
        texts = np.full(len(self.split), None, object)
        names = self.listing.ids.take(pa.array(owners)).to_pylist()
        texts[hidden] = [
            f"the same image is in {SPLITS[self.split[owner]]}: {name}"
            for owner, name in zip(owners.tolist(), names, strict=True)
        ]
        return pc.coalesce(self.swept.errors, pa.array(texts, pa.string()))


def survey(
    settings: DataSettings,
    cache: Path,
    runtime: RuntimeSettings,
    progress: Progress = silent,
    most: Callable[[int], int] | None = None,
) -> Survey:
    """Reads every image once and collects problems. Raises DataError if there are no images.

    With `most`, it reads a sample: `most(image_size)` images of each split, which depend on the list alone.
    """
    source = open_source(settings.source, cache)
    listing = source.listing()
    if not len(listing):
        raise DataError(f"the source '{settings.source.name}' holds no images; expected some, with labels")
    _refuse_repeated_ids(listing)
    if settings.classes is None:
        _refuse_splits_as_classes(listing.classes or ())
    classes, codes = splits.encode(listing, settings.classes)
    hints = np.array([*range(len(SPLITS)), FREE], np.int8)[
        pc.fill_null(pc.index_in(listing.splits, pa.array(SPLITS)), len(SPLITS)).to_numpy()
    ]
    order = _order(listing, codes, settings.split.seed)
    decoder = _decoder(settings, source, listing, np.flatnonzero((codes >= 0) & (hints != TEST)))
    whole = drawn = None
    if most is not None:
        whole = draw_splits(Candidates(codes, hints, np.arange(len(listing)), order), len(classes), settings.split)
        chosen = _some_of_each(whole, most(decoder.image_size))
        listing, drawn = _only(listing, chosen), whole[chosen]
        codes, hints, order = codes[chosen], hints[chosen], order[chosen]
    swept = sweep(source, listing, decoder, FileDigests(cache), cache, runtime, progress)
    samples = Candidates(codes, hints, swept.groups, order)
    split = draw_splits(samples, len(classes), settings.split) if drawn is None else drawn
    shadow = shadowed(samples.groups, split)
    usable = (samples.groups >= 0) & (shadow < 0)
    problems = _without_label(listing, codes, hints)
    if drawn is None:  # a sample says little about how many there are
        problems = [
            *_unreadable(listing, swept, settings.max_unreadable),
            *problems,
            *shortages(samples, split, usable, classes, settings.split),
        ]
    given = _given_labels(listing, codes, split, len(classes), settings.split)
    counts = np.bincount(split if whole is None else whole, minlength=len(SPLITS)).tolist()
    return Survey(
        source,
        listing,
        classes,
        decoder,
        swept,
        samples,
        split,
        shadow,
        given,
        tuple(problems),
        dict(zip(SPLITS, counts, strict=True)),
    )


def _some_of_each(split: np.ndarray, most: int) -> np.ndarray:
    """Returns the positions of at most so many samples of each split, evenly over the list and so over its classes."""
    places = [np.flatnonzero(split == number) for number in range(len(SPLITS))]
    even = [place[np.linspace(0, len(place) - 1, min(most, len(place))).astype(np.int64)] for place in places]
    return np.sort(np.concatenate(even))


def _only(listing: Listing, positions: np.ndarray) -> Listing:
    """Returns the listing of some of its samples."""
    at = pa.array(positions)
    columns = {name: getattr(listing, name).take(at) for name in ("ids", "labels", "splits", "uris", "errors")}
    return replace(listing, **columns)


def _given_labels(
    listing: Listing, codes: np.ndarray, split: np.ndarray, classes: int, settings: SplitSettings
) -> np.ndarray:
    """Returns the labels; some are wrong on purpose if the settings ask for label noise."""
    if not settings.label_noise:
        return codes
    given, labeled = codes.copy(), np.flatnonzero(split == LABELED)
    ids = listing.ids.take(pa.array(labeled)).to_pylist()
    given[labeled] = flip_labels(codes[labeled], ids, classes, settings.label_noise, settings.seed)
    return given


def _refuse_repeated_ids(listing: Listing) -> None:
    counts = pc.value_counts(listing.ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if repeated:
        shown = ", ".join(repr(name) for name in sorted(repeated)[:5])
        raise DataError(
            f"{len(repeated)} ids are used for more than one sample: {shown}; expected a different id for each sample"
        )


def _refuse_splits_as_classes(classes: tuple[str, ...]) -> None:
    """Raises DataError if a class has the name of a split, such as `val`."""
    for role, words in ROLES.items():
        for name in classes:
            if name.lower() in words:
                raise DataError(
                    f"'{name}' looks like a folder of {role} images, not a class. Set data.source.{role} "
                    "to it, or, if it "
                    "is a class, list all classes in data.classes"
                )


def _order(listing: Listing, codes: np.ndarray, seed: int) -> np.ndarray:
    """Returns the keyed order of the samples with a label; the others are never drawn."""
    order = np.zeros(len(listing), np.uint64)
    labeled = np.flatnonzero(codes >= 0)
    order[labeled] = hash_order(listing.ids.take(pa.array(labeled)).to_pylist(), f"split {seed}")
    return order


def _decoder(settings: DataSettings, source: ImageSource, listing: Listing, labeled: np.ndarray) -> Decoder:
    """Returns the decoder with the size and channels of the settings, or else of the labelled images."""
    size, channels = source.shape or (None, None)
    size, channels = settings.image_size or size, settings.channels or channels
    if size is None or channels is None:
        sizes, grey = _probe(source, listing, labeled, settings.max_pixels)
        size = size or min(LARGEST_DEFAULT, int(np.median(sizes)))
        channels = channels or (1 if grey else 3)
    return Decoder(size, channels, settings.max_pixels, settings.interpolation, settings.crop)


def _probe(source: ImageSource, listing: Listing, labeled: np.ndarray, max_pixels: int) -> tuple[list[int], bool]:
    """Returns the shorter sides of the labelled images that come first in a fixed order, and whether all of them are
    grey."""
    names = listing.ids.take(pa.array(labeled)).to_pylist()
    first = labeled[np.argsort(hash_order(names, "probe"), kind="stable")][:PROBES]
    found = []
    with quiet_decoding():
        for uri in listing.uris.take(pa.array(first)).to_pylist():
            try:
                found.append(probe(source.read(uri), max_pixels))
            except Exception:  # noqa: BLE001 - the sweep will report any error
                continue
    if not found:
        raise DataError(
            f"none of {len(labeled)} labelled images can be read; expected some, to know their size. "
            "See the reasons: selftrain data CONFIG"
        )
    return [side for side, _ in found], all(grey for _, grey in found)


def _unreadable(listing: Listing, swept: Swept, limit: float) -> list[str]:
    bad = pa.array(np.flatnonzero(swept.groups < 0))
    if len(bad) <= limit * len(listing):
        return []
    reasons, ids = swept.errors.take(bad).to_pylist(), listing.ids.take(bad).to_pylist()
    shown = "; ".join(
        f"{count} × {error} (as {ids[reasons.index(error)]})" for error, count in Counter(reasons).most_common(3)
    )
    share = len(bad) / len(listing)
    return [
        f"{len(bad)} of {len(listing)} images ({share:.1%}) cannot be read; expected at most {limit:.1%} "
        f"(data.max_unreadable). Reasons: {shown}"
    ]


def _without_label(listing: Listing, codes: np.ndarray, hints: np.ndarray) -> list[str]:
    """Returns lines about samples without a label that the source puts into a split that needs one."""
    problems = []
    for hint, name in enumerate(SPLITS):
        missing = np.flatnonzero((hints == hint) & (codes < 0))
        if name != "unlabeled" and len(missing):
            example = listing.ids[int(missing[0])].as_py()
            problems.append(f"{len(missing)} images of the split '{name}' have no label, for example {example}")
    return problems


FEW_LABELS = 4  # the smallest budget for which results are published
SHOWN = 1000  # entries of a list; counts are always complete


@dataclass(frozen=True)
class DataReport:
    """The result of the data check. Lists hold the first thousand entries; `counts` and `totals` are complete."""

    classes: tuple[str, ...]
    image_size: int
    channels: int
    counts: dict[str, Any]  # split → images, unreadable, in_held_out, per_class
    totals: dict[str, int]  # images, unreadable, duplicates, conflicts, leaks
    unreadable: list[tuple[str, str]]  # sample id, reason
    duplicates: list[list[str]]  # ids of images that are equal
    conflicts: list[list[tuple[str, str]]]  # equal images with different labels: sample id, label
    leaks: list[tuple[str, str, str, str]]  # sample id, split, and the equal image that is held out: sample id, split
    few_labels: dict[str, int]  # class → number of labelled images, if fewer than four
    sizes: dict[str, int]  # width x height → images, the most frequent first
    modes: dict[str, int]  # as Pillow names them → images
    notes: tuple[str, ...]  # ignored entries
    problems: tuple[str, ...]  # why a run would fail

    @property
    def ok(self) -> bool:
        """Returns whether a run would accept the data."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}


def check_data(settings: DataSettings, cache: Path, runtime: RuntimeSettings | None = None) -> DataReport:
    """Reads every image of the source as a run would, and reports. Raises DataError only if there are no images."""
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
    """Returns the positions of equal images, two or more together."""
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


def count_splits(found: Survey) -> dict[str, Any]:
    """Counts the usable images of each split and class, and the images left out."""
    counts: dict[str, Any] = {}
    for number, name in enumerate(SPLITS):
        inside = found.split == number
        used = inside & found.usable
        entry: dict[str, Any] = {
            "images": int(used.sum()),
            "unreadable": int((inside & (found.samples.groups < 0)).sum()),
            "in_held_out": int((inside & (found.shadow >= 0)).sum()),
        }
        if number != UNLABELED:
            labels = found.samples.labels[used]
            entry["per_class"] = np.bincount(labels[labels >= 0], minlength=len(found.classes)).tolist()
        counts[name] = entry
    return counts
