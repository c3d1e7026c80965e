"""Computes sha256 digests of files, stored by their stat as in git's index: an unchanged file is not read again."""

import contextlib
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

from selftrain.ssl_tasks.reading import open_regular
from selftrain.ssl_tasks.store.artifacts import write_atomically

RACY_NS = 2_000_000_000  # a file changed this shortly before it was read may change again with the same time stamp
CHUNK = 1 << 20
COLUMNS = ("size", "mtime", "ctime", "inode")


class FileDigests:
    """The digests of files in one folder, remembered in `<cache>/digests/`."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "digests"
        self.read = 0  # files read because they were new or changed

    def of(self, root: Path, names: Sequence[str], most_bytes: int | None = None) -> list[bytes | None]:
        """Returns the sha256 of each file `root/name`; None if it cannot be read or has more than `most_bytes`."""
        now = time.time_ns()
        stats = np.array([_stat(root / name) for name in names], np.int64).reshape(len(names), len(COLUMNS))
        memory = self.folder / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:32]}.parquet"
        remembered = _recall(memory)
        found = _known(remembered, names, stats)
        too_large = stats[:, 0] > most_bytes if most_bytes is not None else np.zeros(len(names), bool)
        found = [None if large else digest for digest, large in zip(found, too_large, strict=True)]
        known = [large or digest is not None for digest, large in zip(found, too_large, strict=True)]
        unknown = [position for position, sure in enumerate(known) if not sure and stats[position, 0] >= 0]
        with ThreadPoolExecutor() as threads:
            for position, digest in zip(
                unknown, threads.map(lambda at: _digest(root / names[at]), unknown), strict=True
            ):
                found[position] = digest
        self.read += len(unknown)
        if unknown:
            settled = stats[:, 1:3].max(axis=1, initial=0) < now - RACY_NS
            digests = [digest if ok else None for digest, ok in zip(found, settled, strict=True)]
            with contextlib.suppress(OSError):  # a disk that is read-only or full: the files are read again next time
                _remember(memory, pa.concat_tables([_table(names, stats, digests), _others(remembered, root, names)]))
        return found


def _stat(path: Path) -> tuple[int, int, int, int]:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return -1, 0, 0, 0
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _digest(path: Path) -> bytes | None:
    try:
        file, left = open_regular(path)
        digest = hashlib.sha256()
        with file:
            while left and (
                chunk := file.read(min(left, CHUNK))
            ):  # only as many bytes as it had at first: it may grow without end
                digest.update(chunk)
                left -= len(chunk)
        return digest.digest()
    except OSError:
        return None


def _table(names: Sequence[str], stats: np.ndarray, digests: Sequence[bytes | None]) -> pa.Table:
    columns = {column: stats[:, number] for number, column in enumerate(COLUMNS)}
    return pa.table({"name": pa.array(names, pa.string()), **columns, "digest": pa.array(digests, pa.binary())})


def _recall(memory: Path) -> pa.Table:
    try:
        return pq.read_table(memory)
    except (OSError, pa.ArrowInvalid):  # no remembered digests, or damaged ones: read the files again
        return _table([], np.empty((0, len(COLUMNS)), np.int64), [])


def _known(remembered: pa.Table, names: Sequence[str], stats: np.ndarray) -> list[bytes | None]:
    rows = pc.index_in(pa.array(names, pa.string()), remembered["name"]).to_numpy(zero_copy_only=False)
    known = np.column_stack([remembered[column].to_numpy() for column in COLUMNS])
    digests = remembered["digest"].to_pylist()
    return [
        digests[int(row)] if row == row and (known[int(row)] == stat).all() else None  # row != row: not found
        for row, stat in zip(rows, stats, strict=True)
    ]


def _others(remembered: pa.Table, root: Path, names: Sequence[str]) -> pa.Table:
    """Returns the remembered digests of the folder's other files: a table and its images share a folder."""
    others = remembered.filter(pc.invert(pc.is_in(remembered["name"], pa.array(names, pa.string()))))
    there = [os.path.exists(root / name) for name in others["name"].to_pylist()]
    return others.filter(pa.array(there, pa.bool_()))


def _remember(memory: Path, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table.filter(pc.is_valid(table["digest"])), buffer, compression="zstd")
    write_atomically(memory, buffer.getvalue().to_pybytes())
