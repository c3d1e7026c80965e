"""Random access to a Parquet column of images' bytes: unpacked once into a file that every process maps."""

import bisect
import itertools
import uuid
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.store.file_digests import FileDigests
from selftrain.ssl_tasks.store.locks import file_lock

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
