"""The contract of a source of images: a stable list of samples, and reading one of them.

ImageColumn gives random access to a Parquet column of images' bytes, unpacked once into a file that every process maps.
"""

import bisect
import itertools
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.store.file_digests import FileDigests
from selftrain.ssl_tasks.store.locks import file_lock

if TYPE_CHECKING:
    from selftrain.ssl_tasks.store.file_digests import FileDigests


SPLITS = ("labeled", "unlabeled", "validation", "test")


@dataclass(frozen=True)
class Listing:
    """Every sample of a source, column by column, in an order that added samples do not stir."""

    ids: pa.Array  # string, unique
    labels: pa.Array  # string, null where there is none
    splits: pa.Array  # string, one of SPLITS where the source says so; null is drawn
    uris: pa.Array  # string: what the source reads it by, relative to the source's place
    errors: pa.Array  # string, null: why a sample cannot be read, where the list itself shows it
    classes: tuple[str, ...] | None = None  # the source's own class list, classes without images included
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
        """A listing from plain sequences."""

        def strings(values: Sequence[str | None] | pa.Array) -> pa.Array:
            return values if isinstance(values, pa.Array) else pa.array(values, pa.string())

        missing = pa.nulls(len(ids), pa.string()) if errors is None else strings(errors)
        return cls(strings(ids), strings(labels), strings(splits), strings(uris), missing, classes, notes)

    def __len__(self) -> int:
        return len(self.ids)


class ImageSource(ABC):
    """A place that images come from. Picklable: what it opens, it opens again in another process."""

    flip: bool = True  # whether a mirrored image is still of its class
    shape: tuple[int, int] | None = None  # (image size, channels) where all images are alike

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user: ignored entries, and classes that look alike."""
        return ()

    @abstractmethod
    def fingerprint(self, files: "FileDigests") -> str:
        """A digest of all that the source holds; cheap where nothing changed."""

    @abstractmethod
    def listing(self) -> Listing:
        """Every sample."""

    @abstractmethod
    def read(self, uri: str) -> bytes | np.ndarray:
        """One image file's bytes, or its pixels; OSError where it is not there."""

    def check(self) -> None:  # noqa: B027 - what is computed has no place to look at
        """DataError where the source's place cannot be one. A glance: it lists no images and reads none."""

    def file_keys(self, listing: Listing, files: "FileDigests") -> list[bytes | None] | None:
        """The digest of every sample's bytes where it is known without reading them, else None."""
        return None


class DrawnSource(ImageSource):
    """A source that computes its images from their names: there is nothing to decode, to hash or to cache."""

    @abstractmethod
    def draw(self, uris: Sequence[str]) -> np.ndarray:
        """uint8 [n, S, S, C], many at once."""

    def read(self, uri: str) -> np.ndarray:
        return self.draw([uri])[0]


ROWS = 1024  # of a batch


class Blobs:
    """The bytes of one column by row number. `<cache>/tables/` can be deleted: it is unpacked again."""

    def __init__(self, table: Path, column: str, cache: Path, most_bytes: int) -> None:
        self.table, self.column, self.cache, self.most_bytes = table, column, cache, most_bytes

    def read(self, row: int) -> bytes:
        """One row's bytes; OSError where it has none."""
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
                        raise  # of the disk, not of the table
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
