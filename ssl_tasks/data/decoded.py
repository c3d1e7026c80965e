"""The decoded cache: every image once, as uint8 pixels of one size, in one file that all processes map.

`<cache>/decoded/<S>x<S>x<C>-v<version>/pixels-<name>.u8` only grows; `segments/` say which rows are whole, by the
content they hold and by the digest of the image file they came from. Data sets, splits and rounds that share images
share rows. The folder can be deleted: what is missing is decoded again, under another name, so that row numbers that
an older process still holds are never read from it.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_tasks.artifacts import file_lock, write_atomically
from ssl_tasks.data.decode import VERSION, Decoded, Decoder

INDEX = pa.schema(
    [
        ("key", pa.binary(32)),  # sha256 of the image file's bytes
        ("content", pa.binary(16)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("row", pa.int64()),  # in the pixel file; -1 where the pixels were not kept
    ]
)


@dataclass(frozen=True)
class Index:
    """What the cache knows: an entry for each image file that was ever decoded here, the latest first."""

    table: pa.Table
    rows: int  # whole rows of the pixel file
    pixels: Path | None  # the file; None before the first row

    def find(self, keys: Sequence[bytes | None]) -> np.ndarray:
        """The entry of each key, -1 where there is none."""
        return _positions(pa.array(keys, pa.binary(32)), self.table["key"])

    def rows_of(self, contents: pa.Array) -> np.ndarray:
        """The row of pixels of each content, -1 where it is not kept."""
        kept = self.table.filter(pc.greater_equal(self.table["row"], 0))
        found = _positions(contents, kept["content"])
        rows = np.append(kept["row"].to_numpy(), -1)
        return rows[found]


def _positions(values: pa.Array, known: pa.ChunkedArray) -> np.ndarray:
    found = pc.fill_null(pc.index_in(values, known), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    found[pc.is_null(values).to_numpy(zero_copy_only=False)] = -1  # index_in would match null with null
    return found


VOID = Index(INDEX.empty_table(), 0, None)


class DecodedCache:
    """The cache of one image size and channel count. Locks are held for the moment of an append alone."""

    def __init__(self, cache: Path, decoder: Decoder) -> None:
        size, channels = decoder.image_size, decoder.channels
        self.shape = (size, size, channels)
        self.row_bytes = size * size * channels
        self.folder = cache / "decoded" / f"{size}x{size}x{channels}-v{VERSION}"
        self.max_pixels = decoder.max_pixels
        self._segments: dict[Path, pa.Table] = {}

    def index(self) -> Index:
        """What is there now. A pixel file that is missing or shorter than promised makes all of it void."""
        files = sorted((self.folder / "segments").glob("*.parquet"), reverse=True)
        try:
            self._segments = {file: self._segments.get(file) or pq.read_table(file) for file in files}
            table = pa.concat_tables([INDEX.empty_table(), *self._segments.values()])
            pixels = next(self.folder.glob("pixels-*.u8"), None)
            rows = 1 + (pc.max(table["row"]).as_py() if len(table) else -1)
            if rows and (pixels is None or pixels.stat().st_size < rows * self.row_bytes):
                return VOID
        except (OSError, pa.ArrowInvalid):
            return VOID
        return Index(table, rows, pixels)

    def map(self, pixels: Path) -> np.ndarray:
        """The rows of a pixel file, mapped read-only; FileNotFoundError where it was deleted."""
        rows = pixels.stat().st_size // self.row_bytes
        return np.asarray(np.memmap(pixels, np.uint8, "r", shape=(rows, *self.shape)))

    def known(self, keys: Sequence[bytes | None], with_pixels: bool) -> list[Decoded | None]:
        """What is known of image files by the digest of their bytes; `with_pixels` where the cache must hold those."""
        index = self.index()
        found = index.find(keys)
        entries = index.table.take(pa.array(np.unique(found[found >= 0]))).to_pylist()
        by_key = {entry["key"]: entry for entry in entries}

        def decoded(entry: dict[str, Any] | None) -> Decoded | None:
            if entry is None or (with_pixels and entry["row"] < 0):
                return None
            if entry["width"] * entry["height"] > self.max_pixels:
                return None
            return Decoded(None, entry["content"], entry["width"], entry["height"], entry["mode"])

        return [decoded(by_key.get(key)) if key else None for key in keys]

    def append(self, found: Sequence[tuple[bytes, Decoded]], limit_bytes: float) -> None:
        """Adds images by the digest of their bytes; pixels as far as the limit allows, entries always, errors never."""
        readable = [(key, image) for key, image in found if image.error is None]
        if not readable:
            return
        keys, images = zip(*readable, strict=True)
        with file_lock(self.folder.parent / f"{self.folder.name}.lock"):
            index = self.index()
            if index is VOID:
                shutil.rmtree(self.folder, ignore_errors=True)
            contents = pa.array([image.content for image in images], pa.binary(16))
            rows = index.rows_of(contents)
            fresh: dict[bytes, int] = {}
            room = max(0, int(limit_bytes // self.row_bytes) - index.rows)
            for position, image in enumerate(images):
                if rows[position] < 0 and image.pixels is not None and (image.content in fresh or len(fresh) < room):
                    rows[position] = fresh.setdefault(image.content, index.rows + len(fresh))
            self._write_pixels(index, images, rows)
            self._write_segment(keys, images, contents, rows)

    def _write_pixels(self, index: Index, images: Sequence[Decoded], rows: np.ndarray) -> None:
        pairs = zip(rows.tolist(), images, strict=True)
        new = {row: image.pixels for row, image in pairs if row >= index.rows and image.pixels is not None}
        if not new:
            return
        data = np.stack([new[row] for row in sorted(new)])  # the rows that follow the last one
        self.folder.mkdir(parents=True, exist_ok=True)
        path = index.pixels or self.folder / f"pixels-{uuid.uuid4().hex}.u8"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644), "wb") as file:
            file.seek(index.rows * self.row_bytes)
            file.write(data.data)
            file.flush()
            os.fsync(file.fileno())

    def _write_segment(
        self, keys: Sequence[bytes], images: Sequence[Decoded], contents: pa.Array, rows: np.ndarray
    ) -> None:
        columns = [
            pa.array(keys, pa.binary(32)),
            contents,
            *(
                pa.array([getattr(image, name) for image in images], INDEX.field(name).type)
                for name in INDEX.names[2:5]
            ),
            pa.array(rows, pa.int64()),
        ]
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(columns, schema=INDEX), buffer, compression="zstd")
        folder = self.folder / "segments"
        number = len(list(folder.glob("*.parquet")))
        write_atomically(folder / f"{number:08d}-{uuid.uuid4().hex[:8]}.parquet", buffer.getvalue().to_pybytes())
