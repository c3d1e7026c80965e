"""Killing a run costs nothing: what comes out is bit for bit what an undisturbed run makes."""

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from selftrain.ssl_tasks.settings.run_config import LearnerSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.training.checkpoints import TEMPORARY, checkpoint_files
from tests.clock import HANG
from tests.training.moments import MOMENTS, train_until
from tests.training.small_runs import folder_of, kill, learner, train_apart, train_in

KILLS = 10
EACH_STEP = 1e-6  # seconds between checkpoints: so that kills fall into writes as well
METHODS = {"supervised": {"mixup": 0.5}, "fixmatch": {"threshold": 0.3}, "mean_teacher": {"weight": 5.0}}
WORKERS = {"supervised": 0, "fixmatch": 2, "mean_teacher": 0}  # of `make test`


def long_run(method: str) -> LearnerSettings:
    model = {"name": "small_cnn", "width": 4, "dropout": 0.1}
    return learner({"name": method, **METHODS[method]}, model, steps=240, evaluate_every=10, log_every=7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "workers"),
    [
        pytest.param(method, workers, marks=[] if workers == WORKERS[method] else [pytest.mark.long])
        for method in METHODS
        for workers in (0, 2)
    ],
)
def test_ten_kills_change_no_bit(tmp_path: Path, dataset: Artifact, method: str, workers: int) -> None:
    section, chance = long_run(method), random.Random(f"{method}{workers}")
    started = time.monotonic()
    whole = train_in(tmp_path / "whole", section, {"dataset": dataset})
    longest = (time.monotonic() - started) / (KILLS + 2)
    folder = folder_of(tmp_path / "killed", section, dataset)
    moments = chance.sample([*MOMENTS, *[None] * (KILLS - len(MOMENTS))], KILLS)
    seen = []
    for moment in moments:
        body = train_in if moment is None else partial(train_until, moment)
        process = train_apart(tmp_path / "killed", section, dataset, body, workers=workers, checkpoint_every=EACH_STEP)
        wait_for_new_checkpoint(folder, seen[-1] if seen else None)
        if moment is None:
            time.sleep(chance.uniform(0, longest))
        else:
            wait_until_stopped(process.pid)
        assert process.is_alive()
        assert (folder / TEMPORARY).exists() or moment != "half of a checkpoint"
        kill(process)
        seen.append(checkpoint_files(folder)[-1])
    resumed = train_in(tmp_path / "killed", section, {"dataset": dataset}, workers=workers)
    assert len(set(seen)) == KILLS
    assert resumed.digest == whole.digest


def wait_for_new_checkpoint(folder: Path, last: Path | None) -> None:
    """Until the process trains: only then does a kill hit a run."""
    wait_for(lambda: (files := checkpoint_files(folder)) and files[-1] != last)


def wait_until_stopped(pid: int) -> None:
    """Until the process has come to the moment at which it stops."""
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def wait_for(what: Callable[[], Any]) -> None:
    """Until something is so."""
    deadline = time.monotonic() + HANG
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)
