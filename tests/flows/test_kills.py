"""Killed at any moment, a run goes on: nothing finished is done twice, nothing comes out otherwise, nobody is left."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from ssl_tasks.process import visible_gpus
from ssl_tasks.runs import all_runs
from tests.flows.tiny import STAGES, command, computed_in_total, environment, last, outcome, selftrain, states

KILLS = 20


def start(workspace: Path, recipe: str) -> "subprocess.Popen[bytes]":
    """A run in a process group of its own."""
    words = command(workspace, "run", recipe)
    return subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def family(pid: int) -> list[psutil.Process]:
    """A process and all that came from it."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_twenty_moments_it_ends_as_if_nothing_had_been(tmp_path: Path, finished: Path, recipe: str) -> None:
    moments = random.Random(0)  # a fixed sequence; the machine's load makes the moments differ all the same
    killed = 0
    while killed < KILLS:
        run = start(tmp_path, recipe)
        known: set[psutil.Process] = set()
        until = time.monotonic() + moments.uniform(0.5, 9.0)
        while time.monotonic() < until and run.poll() is None:
            known.update(family(run.pid))
            time.sleep(0.05)
        if run.poll() is not None:  # it came to its end: begin again, so that every kill hits a run at work
            assert run.returncode == 0
            assert outcome(last(tmp_path))["digests"] == outcome(last(finished))["digests"]
            for record in tmp_path.glob("store/*"):
                if record.name != "cache":
                    subprocess.run(["rm", "-rf", str(record)], check=True)
            continue
        known.update(family(run.pid))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        killed += 1
        left = psutil.wait_procs(list(known), timeout=20)[1]
        assert not left, f"still there after the kill: {left}"
    ended = selftrain(tmp_path, "run", recipe)
    assert ended.returncode == 0, ended.stderr
    assert outcome(last(tmp_path))["digests"] == outcome(last(finished))["digests"]
    assert outcome(last(tmp_path))["rounds"] == outcome(last(finished))["rounds"]
    assert not [run.id for run in all_runs(tmp_path) if run.info["state"] in ("running", "waiting")]
    assert not any(state == "running" for run in all_runs(tmp_path) for state in states(run).values())


@pytest.mark.slow
def test_no_finished_stage_is_computed_twice_over_many_kills(tmp_path: Path, recipe: str) -> None:
    ended = False
    for attempt in range(40):
        run = start(tmp_path, recipe)
        try:
            run.wait(timeout=4.0 + 0.5 * attempt)
            ended = run.returncode == 0
            break
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    assert ended
    assert computed_in_total(tmp_path) <= STAGES  # a kill between commit and record leaves a stage 'crashed'
    assert len(list(tmp_path.glob("store/[!aqlc]*/*/artifact.json"))) >= 1
    assert not list((tmp_path / "store" / "quarantine").glob("*"))


def test_ctrl_c_checkpoints_and_says_how_to_go_on(tmp_path: Path, recipe: str) -> None:
    words = command(tmp_path, "run", recipe, "--set", "teacher.train.steps=100000")
    run = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("store/attempts/train-*/scratch/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    known = family(run.pid)
    os.kill(run.pid, signal.SIGINT)
    errors = run.communicate(timeout=90)[1]
    assert run.returncode == 130, errors
    assert "run the same command again to go on" in errors
    assert not psutil.wait_procs(known, timeout=20)[1]
    assert last(tmp_path).info["state"] == "interrupted"
    assert list(tmp_path.glob("store/attempts/train-*/scratch/*")), "the checkpoint is kept"


def test_on_a_machine_without_gpus_no_lease_is_taken() -> None:
    assert visible_gpus() == [] or Path("/proc/driver/nvidia/gpus").is_dir()
