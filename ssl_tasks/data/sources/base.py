"""Defines the interface to a source of images: a stable list of samples, and reading one of them.

ImageColumn gives random access to a Parquet column of images' bytes, unpacked once into a file that every process maps.
For sources of files, the module checks paths, reads files, and suggests the nearest name for a mistyped path.
"""

import bisect
import difflib
import itertools
import os
import posixpath
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.reading import read_regular
from selftrain.ssl_tasks.store.file_digests import FileDigests
from selftrain.ssl_tasks.store.locks import file_lock

if TYPE_CHECKING:
    from selftrain.ssl_tasks.store.file_digests import FileDigests


SPLITS = ("labeled", "unlabeled", "validation", "test")


@dataclass(frozen=True)
class Listing:
    """Every sample of a source, column by column, in an order that added samples do not change."""

    ids: pa.Array  # string, unique
    labels: pa.Array  # string, null without a label
    splits: pa.Array  # string, one of SPLITS if the source names it; null is drawn
    uris: pa.Array  # string: the name by which the source reads it, relative to its place
    errors: pa.Array  # string or null: why a sample cannot be read, if the list itself shows it
    classes: tuple[str, ...] | None = None  # the source's own class list, including classes without images
    notes: tuple[str, ...] = field(default_factory=tuple)  # notes for the user, such as ignored entries

    @classmethod
    def of(
        cls,
        ids: Sequence[str] | pa.Array,
        labels: Sequence[str | None] | pa.Array,
        splits: Sequence[str | None] | pa.Array,
        uris: Sequence[str] | pa.Array,
        errors: Sequence[str | None] | None = None,
        classes: tuple[str, ...] | None = None,
        notes: tuple[str, ...] = (),
    ) -> "Listing":
        """Builds a listing from plain sequences."""

        def strings(values: Sequence[str | None] | pa.Array) -> pa.Array:
            return values if isinstance(values, pa.Array) else pa.array(values, pa.string())

        missing = pa.nulls(len(ids), pa.string()) if errors is None else strings(errors)
        return cls(strings(ids), strings(labels), strings(splits), strings(uris), missing, classes, notes)

    def __len__(self) -> int:
        return len(self.ids)


class ImageSource(ABC):
    """A source of images. It is picklable: another process opens its files again."""

    flip: bool = True  # whether a mirrored image is still of its class
    shape: tuple[int, int] | None = None  # (image size, channels) if all images are alike

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns notes for the user: ignored entries, and classes that look alike."""
        return ()

    @abstractmethod
    def fingerprint(self, files: "FileDigests") -> str:
        """Returns a digest of everything in the source; it is cheap if nothing has changed."""

    @abstractmethod
    def listing(self) -> Listing:
        """Lists every sample."""

    @abstractmethod
    def read(self, uri: str) -> bytes | np.ndarray:
        """Returns one image file's bytes, or its pixels; OSError if it does not exist."""

    def check(self) -> None:  # noqa: B027 - computed images have no place to check
        """Raises DataError if the source's place does not exist or is of the wrong kind; lists and reads no images."""

    def file_keys(self, listing: Listing, files: "FileDigests") -> list[bytes | None] | None:
        """Returns the digest of every sample's bytes if it is known without reading them, else None."""
        return None


class DrawnSource(ImageSource):
    """A source that computes its images from their names, so that nothing is decoded, hashed or cached."""

    @abstractmethod
    def draw(self, uris: Sequence[str]) -> np.ndarray:
        """Draws many images at once: uint8 [n, S, S, C]."""

    def read(self, uri: str) -> np.ndarray:
        return self.draw([uri])[0]


ROWS = 1024  # rows of a batch


class Blobs:
    """The bytes of one column by row number, unpacked to `<cache>/tables/`, which can be deleted."""

    def __init__(self, table: Path, column: str, cache: Path, most_bytes: int) -> None:
        self.table, self.column, self.cache, self.most_bytes = table, column, cache, most_bytes

    def read(self, row: int) -> bytes:
        """Returns one row's bytes; OSError if it has none."""
        starts, columns = self._mapped
        batch = bisect.bisect_right(starts, row) - 1
        value = columns[batch][row - starts[batch]]
        if not value.is_valid:
            raise OSError("no image in this row")
        if (size := value.as_buffer().size) > self.most_bytes:
            raise OSError(f"the image has {size:,} bytes, more than the {self.most_bytes:,} that are read")
        return value.as_py()

    @cached_property
    def _mapped(self) -> tuple[list[int], list[pa.Array]]:
        reader = pa.ipc.open_file(pa.memory_map(str(self._unpacked())))
        columns = [reader.get_batch(number).column(0) for number in range(reader.num_record_batches)]
        return [0, *itertools.accumulate(len(column) for column in columns[:-1])], columns

    def _unpacked(self) -> Path:
        (digest,) = FileDigests(self.cache).of(self.table.parent, [self.table.name])
        if digest is None:
            raise OSError("the table cannot be read")
        name = sha256(digest + self.column.encode()).hexdigest()[:32]
        path = self.cache / "tables" / f"{name}.arrow"
        with file_lock(path.with_suffix(".lock")):
            if not path.exists():
                part = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
                try:
                    self._unpack(part)
                    part.rename(path)
                except (pa.ArrowException, OSError, MemoryError) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise  # an error of the disk, not of the table
                    raise DataError(f"column '{self.column}' of {self.table} cannot be read: {error}") from error
                finally:
                    part.unlink(missing_ok=True)
        return path

    def _unpack(self, path: Path) -> None:
        with (
            pq.ParquetFile(self.table) as source,
            pa.ipc.new_file(str(path), pa.schema([(self.column, pa.large_binary())])) as sink,
        ):
            for batch in source.iter_batches(ROWS, columns=[self.column]):
                column = batch.column(0)
                if pa.types.is_struct(column.type):
                    column = column.field("bytes")
                sink.write_batch(pa.record_batch([column.cast(pa.large_binary())], [self.column]))


SUFFIXES = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".gif",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".jp2",
        ".tga",
    ]
)


@dataclass(frozen=True)
class Places:
    """Folders by short names. An image's uri is `name:path below that folder`, which a moved folder does not change."""

    roots: Mapping[str, Path]
    max_file_mb: int

    @property
    def most_bytes(self) -> int:
        """Returns the size of the largest file that is read."""
        return self.max_file_mb * 1_000_000

    def read(self, uri: str) -> bytes:
        """Returns the bytes of an image file."""
        place, _, name = uri.partition(":")
        path = self.roots[place] / name
        if not path.is_file():  # a folder, a pipe, or a broken or circular link
            raise FileNotFoundError(2, "no such file")
        return read_regular(path, self.most_bytes)

    def digests(self, uris: Sequence[str], errors: Sequence[str | None], files: FileDigests) -> list[bytes | None]:
        """Returns the sha256 of each file; None if it cannot be read."""
        digests: list[bytes | None] = [None] * len(uris)
        by_place: dict[str, list[int]] = {}
        for at, (uri, error) in enumerate(zip(uris, errors, strict=True)):
            if error is None:
                by_place.setdefault(uri.partition(":")[0], []).append(at)
        for place, members in by_place.items():
            names = [uris[at].partition(":")[2] for at in members]
            for at, digest in zip(members, files.of(self.roots[place], names, self.most_bytes), strict=True):
                digests[at] = digest
        return digests


def below(root: Path, written: str) -> tuple[str, str | None]:
    """Converts a path of a list or a table to the path below `root`; also returns why it may not be read."""
    name = written.strip().replace(os.sep, "/")
    if posixpath.isabs(name):
        absolute = posixpath.normpath(name)
        base = posixpath.normpath(root.absolute().as_posix()).rstrip("/") + "/"
        if not absolute.startswith(base):
            return name, "the path lies outside the root folder"
        return absolute[len(base) :], None
    normal = posixpath.normpath(name)
    if normal == ".." or normal.startswith("../"):
        return name, "the path lies outside the root folder"
    return normal, "no path" if normal == "." else None


def regular(path: Path, what: str, expected: str) -> Path:
    """Returns the path if it is a regular file, else raises DataError: reading a pipe or a device might never end."""
    if existing(path, what).is_dir() or not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise DataError(f"{what} {path} is {kind}; expected {expected}")
    return path


def existing(path: Path, what: str) -> Path:
    """Returns the path if it exists, else raises DataError with the nearest existing one."""
    if path.exists():
        return path
    parent = path.absolute()
    while not parent.is_dir():
        missing, parent = parent.name, parent.parent
    there = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(missing, there, n=1)
    hint = f" Did you mean '{parent / close[0]}'?" if close else ""
    shown = ", ".join(there[:10]) + (", …" if len(there) > 10 else "") if there else "nothing"
    raise DataError(f"{what} {path} does not exist.{hint} {parent} holds: {shown}.")
