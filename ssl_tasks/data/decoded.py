"""Stores decoded images in a cache: each image once, as uint8 pixels of one size, in a file that all processes map.

`<cache>/decoded/<S>x<S>x<C>-v<version>/pixels-<name>.u8` only grows; `segments/` list the complete rows,
by their content and by the digest of their image file. Data sets, splits and rounds that share images
share rows. Any file can be deleted at any time, even while processes use it: no row is written
twice, a segment names its pixel file, and missing images are decoded again into a file with a new name, so that
row numbers of older processes are never used with it.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selftrain.ssl_tasks.data.decode import VERSION, Decoded, Decoder
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.locks import file_lock, take

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
PIXELS = b"pixels"  # the name of a segment's pixel file, in its metadata


@dataclass(frozen=True)
class Index:
    """The contents of the cache: an entry for each image file that was decoded here, the latest first."""

    table: pa.Table
    rows: int  # of the pixel file, including rows that no segment names
    pixels: Path | None  # the file; None before the first row

    def find(self, keys: Sequence[bytes | None]) -> np.ndarray:
        """Returns the entry of each key, -1 where there is none."""
        return _positions(pa.array(keys, pa.binary(32)), self.table["key"])

    def rows_of(self, contents: pa.Array) -> np.ndarray:
        """Returns the row of pixels of each content, -1 where it is not kept."""
        kept = self.table.filter(pc.greater_equal(self.table["row"], 0))
        found = _positions(contents, kept["content"])
        rows = np.append(kept["row"].to_numpy(), -1)
        return rows[found]


def _positions(values: pa.Array, known: pa.ChunkedArray) -> np.ndarray:
    found = pc.fill_null(pc.index_in(values, known), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    found[pc.is_null(values).to_numpy(zero_copy_only=False)] = -1  # index_in would match null with null
    return found


def pixels_of(segment: pa.Table) -> str:
    """Returns the name of a segment's pixel file."""
    return (segment.schema.metadata or {}).get(PIXELS, b"").decode()


def without_rows(segment: pa.Table) -> pa.Table:
    """Returns the same entries without their pixels."""
    number = segment.schema.get_field_index("row")
    return segment.set_column(number, INDEX.field("row"), pa.array(np.full(len(segment), -1), pa.int64()))


class DecodedCache:
    """The cache of one image size, channel count and way of resizing. Locks are held only while appending."""

    def __init__(self, cache: Path, decoder: Decoder) -> None:
        size, channels = decoder.image_size, decoder.channels
        self.shape = (size, size, channels)
        self.row_bytes = size * size * channels
        resized = "".join(f"-{value}" for value in decoder.resizing.values())
        self.folder = cache / "decoded" / f"{size}x{size}x{channels}-v{VERSION}{resized}"
        self.max_pixels = decoder.max_pixels
        self._segments: dict[Path, pa.Table] = {}

    def index(self) -> Index:
        """Returns the current contents. Rows count only if their segment names the existing pixel file."""
        self._segments = dict(self._read_segments())
        named = {pixels_of(table): None for table in self._segments.values()}
        pixels, rows = next(filter(self._is_whole, (self.folder / name for name in named if name)), None), 0
        if pixels is not None:
            with contextlib.suppress(FileNotFoundError):  # unless another process is deleting it
                rows = -(-pixels.stat().st_size // self.row_bytes)
        tables = [
            table if pixels is not None and pixels_of(table) == pixels.name else without_rows(table)
            for table in self._segments.values()
        ]
        return Index(pa.concat_tables([INDEX.empty_table(), *tables]), rows, pixels)

    def _read_segments(self) -> Iterator[tuple[Path, pa.Table]]:
        """Yields the segments, the latest first, without damaged ones, whose images are decoded again."""
        for file in sorted((self.folder / "segments").glob("*.parquet"), reverse=True):
            with contextlib.suppress(OSError, pa.ArrowInvalid):
                yield file, self._segments.get(file) or pq.read_table(file)

    def _is_whole(self, pixels: Path) -> bool:
        """Returns whether a pixel file exists and is as long as its segments say."""
        rows = [pc.max(table["row"]).as_py() for table in self._segments.values() if pixels_of(table) == pixels.name]
        try:
            return pixels.stat().st_size >= (max(rows) + 1) * self.row_bytes
        except FileNotFoundError:
            return False

    def map(self, pixels: Path) -> np.ndarray:
        """Returns the rows of a pixel file, mapped read-only; FileNotFoundError where it was deleted."""
        rows = pixels.stat().st_size // self.row_bytes
        return np.asarray(np.memmap(pixels, np.uint8, "r", shape=(rows, *self.shape)))

    def known(self, keys: Sequence[bytes | None], with_pixels: bool) -> list[Decoded | None]:
        """Returns the entries of image files by the digest of their bytes; `with_pixels` requires their pixels too."""
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
        """Adds images by the digest of their bytes; pixels within the limit, entries always, unreadable images
        never."""
        readable = [(key, image) for key, image in found if image.error is None]
        if not readable:
            return
        keys, images = zip(*readable, strict=True)
        lock = self.folder.parent / f"{self.folder.name}.lock"
        with contextlib.suppress(FileNotFoundError), file_lock(lock):  # deleted meanwhile: then nothing is stored
            index = self.index()
            contents = pa.array([image.content for image in images], pa.binary(16))
            rows = index.rows_of(contents)
            fresh: dict[bytes, np.ndarray] = {}
            room = max(0, int(limit_bytes // self.row_bytes) - index.rows)
            for row, image in zip(rows, images, strict=True):
                if row < 0 and image.pixels is not None and len(fresh) < room:
                    fresh.setdefault(image.content, image.pixels)
            first, pixels = self._write_pixels(index.pixels, list(fresh.values()))
            new = {content: first + number for number, content in enumerate(fresh)}
            whole = [row if row >= 0 else new.get(image.content, -1) for row, image in zip(rows, images, strict=True)]
            self._write_segment(keys, images, contents, whole, pixels)

    def _write_pixels(self, current: Path | None, images: Sequence[np.ndarray]) -> tuple[int, Path | None]:
        """Adds rows to the pixel file, or to a new one; the first of them, and the file."""
        if not images:
            return 0, current
        self.folder.mkdir(parents=True, exist_ok=True)
        pixels = current or self._new_pixels()
        with os.fdopen(os.open(pixels, os.O_WRONLY | os.O_CLOEXEC), "wb") as file:
            take(file.fileno())  # the folder's lock may have been deleted, and another taken
            first = -(-os.fstat(file.fileno()).st_size // self.row_bytes)
            file.seek(first * self.row_bytes)
            file.write(np.stack(images).data)
            file.flush()
            os.fsync(file.fileno())
        return first, pixels

    def _new_pixels(self) -> Path:
        """Returns an empty pixel file, which replaces files that no segment names."""
        for stale in self.folder.glob("pixels-*.u8"):
            stale.unlink(missing_ok=True)
        pixels = self.folder / f"pixels-{uuid.uuid4().hex}.u8"
        pixels.touch()
        return pixels

    def _write_segment(
        self,
        keys: Sequence[bytes],
        images: Sequence[Decoded],
        contents: pa.Array,
        rows: Sequence[int],
        pixels: Path | None,
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
        schema = INDEX.with_metadata({PIXELS: "" if pixels is None else pixels.name})
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), buffer, compression="zstd")
        folder = self.folder / "segments"
        number = len(list(folder.glob("*.parquet")))
        write_atomically(folder / f"{number:08d}-{uuid.uuid4().hex[:8]}.parquet", buffer.getvalue().to_pybytes())
