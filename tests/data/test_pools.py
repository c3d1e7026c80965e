"""Stored pseudo-labels, opened for training: their soft targets are the selection's, and lie in no process's memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.stream import PseudoPool
from selftrain.ssl_tasks.store.artifacts import Artifact

ROWS, CLASSES = 200_000, 50


@pytest.fixture
def probs() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((ROWS, CLASSES), np.float32)


@pytest.fixture
def selection(tmp_path: Path, probs: NDArray[np.float32]) -> Artifact:
    columns = {"position": np.arange(ROWS), "label": probs.argmax(1), "copies": np.ones(ROWS, np.int32)}
    offsets = pa.array(np.arange(0, probs.size + 1, CLASSES, dtype=np.int32))
    table = pa.table({**columns, "probs": pa.ListArray.from_arrays(offsets, pa.array(probs.ravel()))})
    pq.write_table(table, tmp_path / "selection.parquet", row_group_size=10_000)
    return Artifact(tmp_path, {})


def test_soft_targets_are_the_selections_to_the_bit(
    tmp_path: Path, selection: Artifact, probs: NDArray[np.float32]
) -> None:
    index = np.random.default_rng(1).integers(0, ROWS, 300)
    targets = PseudoPool.open(selection, tmp_path / "scratch").targets(index, CLASSES)
    assert targets.dtype == np.float32
    assert targets.flags.writeable
    assert targets.tobytes() == probs[index].tobytes()


def test_soft_targets_are_never_in_memory_all_at_once(tmp_path: Path, selection: Artifact) -> None:
    usual, watched = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(watched)
    tracemalloc.start()
    try:
        pool = PseudoPool.open(selection, tmp_path / "scratch")
        pool.targets(np.arange(0, ROWS, 400), CLASSES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    arrow = watched.max_memory()
    assert arrow is not None
    assert peak + arrow < ROWS * CLASSES * 4 / 2


def test_the_processes_of_a_host_and_a_resumed_training_map_one_file(tmp_path: Path, selection: Artifact) -> None:
    def files() -> dict[str, tuple[int, int]]:
        found = [path for path in (tmp_path / "scratch").iterdir() if path.stat().st_size]
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

    PseudoPool.open(selection, tmp_path / "scratch")
    written = files()
    assert len(written) == 1
    PseudoPool.open(selection, tmp_path / "scratch")
    assert files() == written


def test_a_file_that_a_killed_process_left_incomplete_is_rewritten(
    tmp_path: Path, selection: Artifact, probs: NDArray[np.float32]
) -> None:
    PseudoPool.open(selection, tmp_path / "whole")
    (name,) = (path.name for path in (tmp_path / "whole").iterdir() if path.stat().st_size)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / f".{name}.tmp").write_bytes(b"half")
    pool = PseudoPool.open(selection, tmp_path / "scratch")
    assert pool.targets(np.arange(ROWS), CLASSES).tobytes() == probs.tobytes()
    assert not (tmp_path / "scratch" / f".{name}.tmp").exists()


def test_a_method_that_learns_labels_alone_writes_no_soft_targets(tmp_path: Path, selection: Artifact) -> None:
    pool = PseudoPool.open(selection, tmp_path / "scratch", soft=False)
    assert pool.probs is None
    assert not (tmp_path / "scratch").exists()
