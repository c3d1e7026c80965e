"""A checkpoint is whole, or it is not used."""

import logging
from pathlib import Path

import pytest
import torch

from selftrain.ssl_tasks.training.checkpoints import (
    TEMPORARY,
    Checkpoints,
    checkpoint_files,
    read_checkpoint,
    write_checkpoint,
)
from selftrain.ssl_tasks.training.state import Snapshot


def snapshot(step: int) -> Snapshot:
    return Snapshot({"w": torch.full((3, 4), float(step)), "n": torch.tensor(step)}, {"step": step, "stale": 0})


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(folder, snapshot(step))


def test_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, 7)
    back = read_checkpoint(checkpoint_files(tmp_path)[0])
    assert back.values == {"step": 7, "stale": 0}
    assert {name: tensor.tolist() for name, tensor in back.tensors.items()} == {"w": [[7.0] * 4] * 3, "n": 7}


def test_only_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 10)
    assert [path.name[:15] for path in checkpoint_files(tmp_path)] == ["step-0000000003", "step-0000000010"]


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut short":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = data[:0]
    else:
        data[len(data) // 2 if how == "flipped bit" else -1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut short", "empty", "flipped bit", "flipped last bit"])
def test_a_damaged_newest_checkpoint_is_replaced_by_the_previous_one(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1, 2)
    damage(checkpoint_files(tmp_path)[-1], how)
    with caplog.at_level(logging.WARNING):
        found = Checkpoints(tmp_path, 60).newest()
    assert found is not None
    assert found.values["step"] == 1
    assert "damaged" in caplog.text


def test_damaged_checkpoint_takes_no_good_ones_place(tmp_path: Path) -> None:
    write(tmp_path, 1, 9)
    damage(checkpoint_files(tmp_path)[-1], "cut short")
    checkpoints = Checkpoints(tmp_path, 60)
    checkpoints.newest()
    for step in (2, 3):
        checkpoints.save(snapshot(step))
    checkpoints.wait()
    assert [read_checkpoint(path).values["step"] for path in checkpoint_files(tmp_path)] == [2, 3]


def test_with_only_damaged_checkpoints_training_starts_from_step_0(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    for path in checkpoint_files(tmp_path):
        damage(path, "cut short")
    assert Checkpoints(tmp_path, 60).newest() is None


def test_unfinished_write_is_not_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / TEMPORARY).write_bytes(b"half of it")
    found = Checkpoints(tmp_path, 60).newest()
    assert found is not None
    assert found.values["step"] == 1


def test_a_failed_write_raises_an_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    checkpoints = Checkpoints(blocked / "checkpoints", 60)
    checkpoints.save(snapshot(1))
    with pytest.raises(NotADirectoryError):
        checkpoints.wait()


def test_a_rank_that_only_reads_is_never_due(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, 1e-9).due()
    assert not Checkpoints(tmp_path, 1e-9, writes=False).due()
