"""sha256 of files, remembered by their stat, as git's index does: a file that did not change is not read again."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_tasks.artifacts import write_atomically

RACY_NS = 2_000_000_000  # a file touched this shortly before it was read may change again under the same time stamp
COLUMNS = ("size", "mtime", "ctime", "inode")


class FileDigests:
    """Digests of the files below one folder; the memory of them lies in `<cache>/digests/`."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "digests"
        self.read = 0  # files read because they were new or changed

    def of(self, root: Path, names: Sequence[str]) -> list[bytes | None]:
        """The sha256 of each file `root/name`; None where it cannot be read."""
        now = time.time_ns()
        stats = np.array([_stat(root / name) for name in names], np.int64).reshape(len(names), len(COLUMNS))
        memory = self.folder / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:32]}.parquet"
        found = _recall(memory, names, stats)
        unknown = [position for position, digest in enumerate(found) if digest is None and stats[position, 0] >= 0]
        with ThreadPoolExecutor() as threads:
            for position, digest in zip(
                unknown, threads.map(lambda at: _digest(root / names[at]), unknown), strict=True
            ):
                found[position] = digest
        self.read += len(unknown)
        if unknown:
            settled = stats[:, 1:3].max(axis=1, initial=0) < now - RACY_NS
            _remember(memory, names, stats, [digest if ok else None for digest, ok in zip(found, settled, strict=True)])
        return found


def _stat(path: Path) -> tuple[int, int, int, int]:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return -1, 0, 0, 0
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _digest(path: Path) -> bytes | None:
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def _recall(memory: Path, names: Sequence[str], stats: np.ndarray) -> list[bytes | None]:
    try:
        table = pq.read_table(memory)
    except (OSError, pa.ArrowInvalid):  # none yet, or damaged: read the files again
        return [None] * len(names)
    rows = pc.index_in(pa.array(names, pa.string()), table["name"]).to_numpy(zero_copy_only=False)
    known = np.column_stack([table[column].to_numpy() for column in COLUMNS]) if len(table) else np.empty((0, 4))
    digests = table["digest"].to_pylist()
    return [
        digests[int(row)] if row == row and (known[int(row)] == stat).all() else None  # row != row: not found
        for row, stat in zip(rows, stats, strict=True)
    ]


def _remember(memory: Path, names: Sequence[str], stats: np.ndarray, digests: Sequence[bytes | None]) -> None:
    columns = {column: stats[:, number] for number, column in enumerate(COLUMNS)}
    table = pa.table({"name": pa.array(names, pa.string()), **columns, "digest": pa.array(digests, pa.binary())})
    buffer = pa.BufferOutputStream()
    pq.write_table(table.filter(pc.is_valid(table["digest"])), buffer, compression="zstd")
    write_atomically(memory, buffer.getvalue().to_pybytes())
