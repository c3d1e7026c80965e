"""Runs the stage `dataset`, which turns a source into an artifact, and opens that artifact as a Dataset.

The stage writes the manifest column by column, draws the splits and decodes every image once. A Dataset has its
classes, and pools of images by split.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selftrain.ssl_tasks.data.decode import Decoder
from selftrain.ssl_tasks.data.images import Images, Kept
from selftrain.ssl_tasks.data.sources import fingerprint, last_place, open_source, parse_source
from selftrain.ssl_tasks.data.sources.base import SPLITS
from selftrain.ssl_tasks.data.splits import LABELED, UNLABELED
from selftrain.ssl_tasks.data.survey import Survey, count_splits, survey
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

ROWS = 65_536  # rows of a row group, and of a piece of a digest

MANIFEST = pa.schema(
    [
        ("sample_id", pa.string()),
        ("label", pa.int32()),  # -1 for unlabelled images
        ("split", pa.string()),
        ("content", pa.string()),  # equal contents, equal images; null where unreadable
        ("uri", pa.string()),  # the name by which the source reads it
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("error", pa.string()),  # why it is in no pool
    ]
)
TRUTH = pa.schema([("sample_id", pa.string()), ("label", pa.int32())])


def manifest_table(found: Survey) -> pa.Table:
    """Returns one row per sample, in the source's order, without labels that training must not know."""
    label = np.where(found.split == UNLABELED, -1, found.given).astype(np.int32)
    columns = [
        found.listing.ids,
        pa.array(label),
        pa.array(SPLITS).take(pa.array(found.split)),
        found.swept.contents,
        found.listing.uris,
        found.swept.width,
        found.swept.height,
        found.swept.mode,
        found.errors,
    ]
    return pa.Table.from_arrays(columns, schema=MANIFEST)


def truth_table(found: Survey) -> pa.Table:
    """Returns the labels that are known and that training must not know."""
    told = (found.split != UNLABELED) & (found.given == found.samples.labels)
    hidden = pa.array(np.flatnonzero(~told & (found.samples.labels >= 0)))
    labels = pa.array(found.samples.labels).take(hidden)
    return pa.Table.from_arrays([found.listing.ids.take(hidden), labels], schema=TRUTH)


def write_table(table: pa.Table, path: Path) -> None:
    """Writes Parquet, one row group at a time."""
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for start in range(0, max(1, len(table)), ROWS):
            writer.write_table(table.slice(start, ROWS))


def part_digests(table: pa.Table, info: Mapping[str, Any], with_labeled: bool) -> dict[str, str]:
    """Returns a digest of each split's samples, so that a stage can depend on one split only."""
    parts = {}
    for name in SPLITS:
        names = [name, "labeled"] if name == "unlabeled" and with_labeled else [name]
        digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode())
        rows = table.select(["sample_id", "label", "content", "error"])
        rows = rows.filter(pc.is_in(table["split"], pa.array(names)))
        for start in range(0, len(rows), ROWS):
            piece = rows.slice(start, ROWS).to_pydict()
            if name == "unlabeled":
                del piece["label"]  # the labelled part covers which of them are labelled
            digest.update(json.dumps(piece, sort_keys=True).encode())
        parts[name] = digest.hexdigest()
    return parts


PoolName = Literal["labeled", "unlabeled", "validation", "test", "all"]


class Dataset:
    """A data set as training and evaluation use it."""

    def __init__(self, folder: Path, images: Images, info: dict) -> None:
        self.folder, self._images, self._info = folder, images, info
        self.classes: tuple[str, ...] = tuple(info["classes"])
        self.num_classes = len(self.classes)
        self.channels: int = info["channels"]
        self.image_size: int = info["image_size"]
        self.mean: tuple[float, ...] = tuple(info["mean"])
        self.std: tuple[float, ...] = tuple(info["std"])
        self.flip: bool = info["flip"]
        self.resizing: dict[str, Any] = info.get(
            "resizing", {}
        )  # the decoder's settings that are not at their defaults

    @classmethod
    def open(cls, artifact: Artifact, cache: Path, runtime: RuntimeSettings | None = None) -> "Dataset":
        """Opens an artifact of the dataset stage. Columns are read only when a pool needs them."""
        info = json.loads(artifact.file("info.json").read_text())
        source = parse_source(artifact.manifest["settings"]["source"])
        found = open_source(last_place(source, info["fingerprint"], cache), cache)
        resizing = info.get("resizing", {})
        decoder = Decoder(info["image_size"], info["channels"], info["max_pixels"], **resizing)
        return cls(artifact.path, Images(found, decoder, cache, runtime or RuntimeSettings()), info)

    def pool(self, name: PoolName) -> "Pool":
        """Returns the readable images of a split, or all; "unlabeled" includes labelled ones if the settings say so."""
        table = self._rows(name, ["label", "content"], usable=True)
        labels = table["label"].to_numpy().astype(np.int64)
        if name == "unlabeled":
            labels = np.full_like(labels, -1)
        return Pool(self.folder, table["position"].to_numpy(), labels, self._images)

    def unreadable(self, name: PoolName) -> list[tuple[str, str]]:
        """Returns the samples of a split that are not in its pool, and why."""
        table = self._rows(name, ["sample_id", "error"], usable=False)
        return list(zip(table["sample_id"].to_pylist(), table["error"].to_pylist(), strict=True))

    def _rows(self, name: PoolName, columns: list[str], usable: bool) -> pa.Table:
        """Columns of a split, and each row's position in the manifest; no sample is held as a Python object."""
        names = list(SPLITS) if name == "all" else [name]
        if name == "unlabeled" and self._info["unlabeled_includes_labeled"]:
            names.append("labeled")
        read = ["split", *columns, *({"error"} - set(columns))]
        pieces, start = [], 0
        with pq.ParquetFile(self.folder / "manifest.parquet") as file:
            for batch in file.iter_batches(columns=read):
                position = pa.array(np.arange(start, start + len(batch)))
                inside = pc.and_(
                    pc.is_in(batch["split"], pa.array(names)),
                    (pc.is_null if usable else pc.is_valid)(batch["error"]),
                )
                piece = pa.table({"position": position, **{column: batch[column] for column in columns}})
                pieces.append(piece.filter(inside))
                start += len(batch)
        return pa.concat_tables(pieces)


class Pool:
    """Images of one split by their position in it: 0 … len - 1. Picklable; other columns are read when asked for."""

    def __init__(self, folder: Path, positions: np.ndarray, labels: np.ndarray, images: Images) -> None:
        self.labels = labels  # int64 [n]; -1 where unknown
        self._folder, self._positions, self._images = folder, positions, images
        self._kept: Kept | None = None
        self._held: dict[str, pa.ChunkedArray] = {}  # columns that images are read by

    def __getstate__(self) -> dict:
        return {**vars(self), "_held": {}}

    def __len__(self) -> int:
        return len(self._positions)

    def images(self, index: np.ndarray) -> np.ndarray:
        """Returns uint8 [n, S, S, C]. The first call decodes images that the cache has lost."""
        index = np.asarray(index, np.int64)
        kept = self._kept
        if kept is None or not (kept.pixels is None or kept.pixels.exists()):
            kept = self._kept = self._images.keep(len(self), self.contents, self._uris_of)
        return self._images.load(kept, index, self._uris_of, self._contents_of)

    def sample_ids(self, index: np.ndarray | None = None) -> list[str]:
        """Returns the ids of `index`, or of all, in the pool's order."""
        return self.column("sample_id", index).to_pylist()

    def contents(self) -> list[str]:
        """Returns the digest of each image's contents; equal digests mean equal images."""
        return self.column("content").to_pylist()

    def truth(self) -> np.ndarray:
        """Returns int64 [n]: the ground truth, -1 where unknown. Only for audits and diagnosis; training must not use
        it."""
        known = self.column("label").to_numpy().astype(np.int64)
        truth = pq.read_table(self._folder / "truth.parquet")
        found = pc.fill_null(
            pc.index_in(self.column("sample_id"), truth["sample_id"].cast(pa.large_string())), -1
        ).to_numpy()
        return np.where(found < 0, known, np.append(truth["label"].to_numpy(), -1)[found])

    def _uris_of(self, index: np.ndarray) -> list[str]:
        return self._of("uri", index)

    def _contents_of(self, index: np.ndarray) -> list[str]:
        return self._of("content", index)

    def _of(self, name: str, index: np.ndarray) -> list[str]:
        if name not in self._held:
            self._held[name] = self.column(name)
        return self._held[name].take(pa.array(index)).to_pylist()

    def column(self, name: str, index: np.ndarray | None = None) -> pa.ChunkedArray:
        """Returns a column of the manifest at this pool's positions; no value is held as a Python object."""
        positions = self._positions if index is None else self._positions[index]
        column = pq.read_table(self._folder / "manifest.parquet", columns=[name])[name]
        if pa.types.is_string(column.type):
            column = column.cast(pa.large_string())  # `take` fails beyond 2 GB of text: 67 million digests
        return column.take(pa.array(positions))


STATISTICS_OF = 4096  # number of labelled images, first in the keyed order, that give mean and standard deviation
BATCH = 256


def build_dataset(context: StageContext) -> StageResult:
    """Writes manifest, ground truth and info; parts are the digests of the four splits."""
    settings = context.section
    assert isinstance(settings, DataSettings)
    return write_dataset(context, settings, survey(settings, context.cache, context.runtime, context.progress))


def write_dataset(context: StageContext, settings: DataSettings, found: Survey) -> StageResult:
    """Writes the files of a data set as it was surveyed; raises DataError for data that cannot be trained on."""
    if found.problems:
        raise DataError("\n".join(found.problems))
    mean, std = pixel_statistics(found, context) if settings.standardise else unchanged(found.decoder.channels)
    identity: dict[str, Any] = {
        "classes": list(found.classes),
        "channels": found.decoder.channels,
        "image_size": found.decoder.image_size,
        "mean": mean,
        "std": std,
        "flip": found.source.flip,
    }
    if found.decoder.resizing:
        identity["resizing"] = found.decoder.resizing
    includes = settings.split.unlabeled_includes_labeled
    counts = count_splits(found)
    info = {
        **identity,
        "unlabeled_includes_labeled": includes,
        "max_pixels": settings.max_pixels,
        "fingerprint": fingerprint(settings, context.cache),
        "counts": counts,
    }
    table = manifest_table(found)
    write_table(table, context.output / "manifest.parquet")
    write_table(truth_table(found), context.output / "truth.parquet")
    (context.output / "info.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
    summary = {name: counts[name]["images"] for name in counts}
    left_out = {key: sum(entry[key] for entry in counts.values()) for key in ("unreadable", "in_held_out")}
    summary |= {"classes": len(found.classes), **left_out, "decoded": found.swept.decoded}
    return StageResult(summary, part_digests(table, identity, includes))


def unchanged(channels: int) -> tuple[list[float], list[float]]:
    """Returns a mean of 0 and a standard deviation of 1, which leave pixels in 0 … 1."""
    return [0.0] * channels, [1.0] * channels


def pixel_statistics(found: Survey, context: StageContext) -> tuple[list[float], list[float]]:
    """Computes mean and standard deviation of each channel over labelled images, where white is 1."""
    labeled = np.flatnonzero((found.split == LABELED) & found.usable)
    chosen = np.sort(labeled[np.argsort(found.samples.order[labeled], kind="stable")][:STATISTICS_OF])
    images = Images(found.source, found.decoder, context.cache, context.runtime)

    def uris(at: np.ndarray) -> list[str]:
        return found.listing.uris.take(pa.array(chosen[at])).to_pylist()

    def contents(at: np.ndarray) -> list[str]:
        return found.swept.contents.take(pa.array(chosen[at])).to_pylist()

    kept = images.keep(len(chosen), found.swept.contents.take(pa.array(chosen)).to_pylist, uris)
    total = np.zeros((2, found.decoder.channels), np.int64)
    for start in range(0, len(chosen), BATCH):
        index = np.arange(start, min(start + BATCH, len(chosen)))
        pixels = images.load(kept, index, uris, contents).astype(np.int64)
        total += np.stack([pixels.sum(axis=(0, 1, 2)), np.square(pixels).sum(axis=(0, 1, 2))])
    count = len(chosen) * found.decoder.image_size**2
    mean = total[0] / count
    std = np.sqrt(np.maximum(total[1] / count - mean**2, 0))
    return (mean / 255).round(6).tolist(), np.maximum(std / 255, 1e-3).round(6).tolist()
