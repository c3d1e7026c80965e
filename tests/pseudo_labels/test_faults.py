"""Predicting in processes that are killed, and on disks that are full."""

import json
import multiprocessing
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from selftrain.ssl_tasks.data.order import key_of
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, digest_file
from tests.clock import HANG
from tests.pseudo_labels.predict_once import SHARD_SIZE, predict_once
from tests.pseudo_labels.tables import Row, Tables, run_select
from tests.pseudo_labels.teachers import synthetic, teacher

IMAGES = 1600
WAIT_SECONDS = HANG
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["tests.pseudo_labels.predict_once"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    workspace = tmp_path_factory.mktemp("inputs")
    return synthetic(workspace, size=IMAGES, validation=10), teacher(workspace / "teacher")


def start(workspace: Path, inputs: tuple[Artifact, Artifact], output: Path, limit: int | None = None) -> BaseProcess:
    process = forkserver.Process(target=predict_once, args=(workspace, *inputs, output, limit))
    process.start()
    return process


def answer(process: BaseProcess, output: Path) -> dict[str, Any]:
    process.join(WAIT_SECONDS)
    assert process.exitcode == 0
    return json.loads(output.with_suffix(".json").read_text())


def predicted(
    workspace: Path, inputs: tuple[Artifact, Artifact], output: Path, limit: int | None = None
) -> dict[str, Any]:
    return answer(start(workspace, inputs, output, limit), output)


def digests(folder: Path) -> dict[str, str]:
    """Every file under its name."""
    return {str(path.relative_to(folder)): digest_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def finished_shards(workspace: Path) -> int:
    return len(list((workspace / "cache" / "shards").rglob("*.parquet")))


def test_killed_ten_times_it_loses_only_the_shard_in_hand_and_ends_with_the_same_bytes(
    inputs: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    shards = predicted(tmp_path / "other", inputs, tmp_path / "undisturbed")["shards"]
    assert shards > IMAGES / SHARD_SIZE / 2
    workspace, rng = tmp_path / "workspace", random.Random(0)
    for number in range(10):
        before = finished_shards(workspace)
        process = start(workspace, inputs, tmp_path / f"killed-{number}")
        while finished_shards(workspace) <= before + 1 and process.is_alive():
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.01)  # anywhere in the next shard's decoding, computing or writing
        process.kill()
        process.join()
        assert process.exitcode == -9
        after = finished_shards(workspace)
        assert before < after < shards
    last = predicted(workspace, inputs, tmp_path / "finished")
    assert last["shards_reused"] == after
    assert digests(tmp_path / "finished") == digests(tmp_path / "undisturbed")


def test_a_limit_on_file_sizes_leaves_no_half_file_and_a_clear_error(
    inputs: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    whole = predicted(tmp_path / "other", inputs, tmp_path / "whole")
    largest = max(path.stat().st_size for path in (tmp_path / "other" / "cache").rglob("*.parquet"))
    assert_says_full(predicted(tmp_path / "workspace", inputs, tmp_path / "full", limit=largest - 1))
    assert_only_whole_files(tmp_path / "workspace")
    finished = finished_shards(tmp_path / "workspace")
    assert 0 < finished < whole["shards"]
    assert predicted(tmp_path / "workspace", inputs, tmp_path / "again")["shards_reused"] == finished
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk; the limit on file sizes is tested beside this")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_half_file_and_a_clear_error(
    inputs: tuple[Artifact, Artifact], tmp_path: Path, small_disk: Path
) -> None:
    assert_says_full(predicted(small_disk, inputs, tmp_path / "full"))
    assert finished_shards(small_disk) > 0
    assert_only_whole_files(small_disk)
    shutil.copytree(small_disk, tmp_path / "larger")  # what was finished there is used elsewhere
    assert predicted(tmp_path / "larger", inputs, tmp_path / "again")["shards_reused"] == finished_shards(small_disk)


def test_selecting_onto_a_full_disk_leaves_no_half_file_and_a_clear_error(tmp_path: Path, small_disk: Path) -> None:
    rows = [Row(f"{key_of(number):020d}", number % 3, (number % 1000) / 1000) for number in range(20_000)]
    with pytest.raises(SelftrainError, match="no space left"):
        run_select(Tables(tmp_path / "tables", rows), small_disk / "output", SelectSettings(threshold=None))
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def assert_says_full(said: dict[str, Any]) -> None:
    assert "no space left" in said["error"]
    assert "MiB free" in said["error"]


def assert_only_whole_files(workspace: Path) -> None:
    """Every shard under its final name has the bytes that its digest names; nothing temporary is left."""
    for path in (workspace / "cache" / "shards").rglob("*.parquet"):
        assert digest_file(path) == path.with_suffix(".sha256").read_text()
    assert not list(workspace.rglob("*.tmp"))
