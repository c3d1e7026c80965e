"""Inspects a folder or table of images, and suggests the settings that read it."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from selftrain.ssl_tasks.data.decode import probe
from selftrain.ssl_tasks.data.sources import open_source
from selftrain.ssl_tasks.data.sources.base import existing
from selftrain.ssl_tasks.data.sources.folder import ROLES, subfolders
from selftrain.ssl_tasks.data.sources.table import columns_of
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.data import DataSettings, FolderSource, TableSource

TRAIN = ("train", "training", "labeled", "labelled")
TABLES = (".csv", ".parquet", ".pq")
COLUMNS = {
    "image": ("image", "path", "image_path", "file", "filename", "file_name", "img"),
    "label": ("label_name", "label", "class", "class_name", "category", "target"),
    "split": ("split", "subset", "fold"),
}
PROBED = 64


@dataclass(frozen=True)
class FoundData:
    """The settings for the data that was found, and its counts."""

    settings: DataSettings
    labels: dict[str, int]  # class → images with that label, test and validation left out
    splits: dict[str, int]  # labeled, unlabeled, validation, test as the source defines them, without drawn splits
    sides: tuple[int, int, int] | None  # smallest, median and largest shorter side of some images
    notes: tuple[str, ...] = field(default=())


def suggest_settings(place: Path, follow_links: bool = False) -> FoundData:
    """Returns the settings for a folder of class folders, a folder with one table, or a table. No image is decoded."""
    existing(place, "the folder")
    suggested = _suggest_source(place)
    if follow_links and isinstance(suggested, FolderSource):
        suggested = suggested.model_copy(update={"follow_links": True})
    settings = DataSettings(source=suggested)
    source = open_source(settings.source, Path())  # nothing here is cached
    listing = source.listing()
    splits = [split or "labeled" for split in listing.splits.to_pylist()]
    pairs = zip(listing.labels.to_pylist(), splits, strict=True)
    labels = Counter(label for label, split in pairs if label is not None and split == "labeled")
    sides = []
    for uri in listing.uris[:: max(1, len(listing) // PROBED)].to_pylist() if settings.source.name == "folder" else ():
        try:
            sides.append(probe(source.read(uri), settings.max_pixels)[0])
        except Exception:  # noqa: BLE001 - hostile bytes make a decoder raise almost anything; the data check tells
            continue
    return FoundData(
        settings,
        {name: labels[name] for name in listing.classes or sorted(labels)},
        dict(Counter(splits)),
        (min(sides), int(statistics.median(sides)), max(sides)) if sides else None,
        listing.notes,
    )


def _suggest_source(place: Path) -> FolderSource | TableSource:
    if place.is_file():
        return _suggest_table(place)
    names = {name.lower(): name for name in subfolders(place)}
    others = {
        role: place / names[next(word for word in words if word in names)]
        for role, words in ROLES.items()
        if any(word in names for word in words)
    }
    train = next((place / names[word] for word in TRAIN if word in names and subfolders(place / names[word])), None)
    if train is not None:
        return FolderSource(name="folder", path=train, **others)
    tables = sorted(path for path in place.iterdir() if path.suffix.lower() in TABLES)
    if len(names) == len(others) and tables:
        test = [path for path in tables if "test" in path.stem.lower()]
        rest = [path for path in tables if path not in test]
        if len(rest) == 1 and len(test) <= 1:
            return _suggest_table(rest[0], *test)
    if not set(names.values()) - {path.name for path in others.values()}:
        raise DataError(
            f"{place} holds neither class folders nor a table; "
            f"expected one folder of images per class (such as {place}/cat/), or a CSV or Parquet file"
        )
    return FolderSource(name="folder", path=place, **{role: at for role, at in others.items() if at.name != role})


def _suggest_table(path: Path, test: Path | None = None) -> TableSource:
    if path.suffix.lower() not in TABLES:
        raise DataError(
            f"{path} is neither a folder nor named like a table; expected a folder of images, or a .csv or "
            ".parquet file"
        )
    there = columns_of(path)
    found = {
        role: next((name for word in words for name in there if name.lower() == word), None)
        for role, words in COLUMNS.items()
    }
    for role in ("image", "label"):
        if found[role] is None:
            expected = ", ".join(COLUMNS[role])
            raise DataError(
                f"no column of {path} is named like the {role}: found {', '.join(there)}; expected one of {expected}"
            )
    return TableSource(
        name="table", path=path, test_path=test, **{role: name for role, name in found.items() if name is not None}
    )
