"""A selection's probabilities, dense, as one file that all processes of a host map: they are in no process's memory."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selftrain.ssl_tasks.store.locks import file_lock

ROWS = 4096  # written at a time
READ = 1 << 20  # bytes at a time, in place of a whole row group's


def map_soft_targets(selection: Path, folder: Path) -> NDArray[np.float32]:
    """[n, K], read-only. The first process writes the file in `folder`; the others, and a resumed training, find it."""
    path = folder / "soft_targets.f32"
    with file_lock(folder / "soft_targets.lock"):
        if not path.exists():
            write_soft_targets(selection, path)
    rows = pq.read_metadata(selection).num_rows
    return np.asarray(np.memmap(path, np.float32, "r")).reshape(rows, -1)


def write_soft_targets(selection: Path, path: Path) -> None:
    """The rows of column `probs`, one after the other; the file appears under its name when it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    source = pq.ParquetFile(selection, buffer_size=READ, pre_buffer=False)
    with source as table, temporary.open("wb") as file:
        for batch in table.iter_batches(ROWS, columns=["probs"]):
            file.write(batch["probs"].flatten().to_numpy())  # not through a map: there a full disk is a SIGBUS
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
