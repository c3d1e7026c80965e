"""A run killed at any moment resumes: nothing finished is recomputed, results are equal, no process is left."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from selftrain.ssl_tasks.execution.devices import visible_gpus
from selftrain.ssl_tasks.store.runs import Run, all_runs
from tests.clock import HANG
from tests.flows.claims import GPU, assert_nobody_is_left, claims_to_run, marked, nobody_holds_the_gpu
from tests.flows.tiny import STAGES, command, environment, last, outcome, selftrain
from tests.warm import Command

FOLLOW_SECONDS = 5.0
BEFORE_WORK = 4  # every fourth kill comes before a stage is at work
START_SECONDS = 4.0
WORK_SECONDS = 0.6  # the other kills come so long after a stage has begun to work, at most


Started = Command | subprocess.Popen[bytes]
Kill = Callable[[Started, Path], None]


def start(workspace: Path, *words: str, warm: bool = False) -> Started:
    """A command in a process group of its own. All that comes from it is known by a mark.

    With `warm`, its imports are behind it (`tests.warm`): for kills that must hit its work. A GPU is pretended by an
    environment variable: the lease is a real lock, held and freed as on a GPU machine, but no GPU is used.
    """
    changes = {"SELFTRAIN_TEST": str(workspace), "SELFTRAIN_LOCKS": str(workspace / "locks"), **GPU}
    if warm:
        return Command(command(workspace, *words)[1:], environment(**changes), session=True)
    return subprocess.Popen(
        command(workspace, *words),
        env=environment(**changes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(run: Started, workspace: Path) -> None:
    """Sends SIGKILL to the whole process group, so that no process can clean up."""
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert_nobody_is_left(str(workspace))


def kill_alone(run: Started, workspace: Path) -> None:
    """SIGKILL to the main process, as a person or the kernel does when memory runs out; its children follow at once."""
    run.kill()
    run.wait()
    deadline = time.monotonic() + FOLLOW_SECONDS
    while left := marked(str(workspace)):
        assert time.monotonic() < deadline, f"still there after {FOLLOW_SECONDS:g} s: {left}"
        time.sleep(0.05)


def at_work(workspace: Path, process: Started, first: int) -> bool:
    """Whether a stage of this very command computes, the `first` of the pipeline or a later one."""
    runs = [run for run in all_runs(workspace) if run.info["pid"] == process.pid]
    stages = [stage for run in runs for stage in run.stages()]
    # Its process has opened the log: the stage is not being looked up in the store.
    return any(stage.state == "running" and stage.order >= first and Path(stage.log).exists() for stage in stages)


def wait_until_at_work(workspace: Path, process: Started, first: int) -> None:
    """Or until it has ended."""
    while process.poll() is None and not at_work(workspace, process, first):
        time.sleep(0.05)


def assert_nothing_was_computed_twice(workspace: Path) -> None:
    """No key has been computed by two runs, and nothing was found damaged."""
    stages = [stage for run in all_runs(workspace) for stage in run.stages()]
    computed = [stage.key for stage in stages if stage.state == "computed"]
    assert len(computed) == len(set(computed))
    assert not list((workspace / "store" / "quarantine").glob("*"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("killing", "kills"),
    [
        (kill, 5),
        (kill_alone, 4),
        pytest.param(kill, 40, marks=pytest.mark.long),
        pytest.param(kill_alone, 20, marks=pytest.mark.long),
    ],
)
def test_killed_at_many_moments_it_ends_as_if_nothing_had_been(
    tmp_path: Path, finished: Path, recipe: str, killing: Kill, kills: int
) -> None:
    """The kills are spread over one pipeline's life: each run resumes where the previous one was killed."""
    moments, killed = random.Random(0), 0  # the machine's load makes the moments differ all the same
    while killed < kills:
        before_work = killed % BEFORE_WORK == 0
        run = start(tmp_path, "run", recipe, *(["--no-prefect"] if killed % 2 else []), warm=not before_work)
        if before_work:
            time.sleep(moments.uniform(0, START_SECONDS))
        else:
            wait_until_at_work(tmp_path, run, first=killed * (STAGES - 1) // kills)
            time.sleep(moments.uniform(0, WORK_SECONDS))
        if run.poll() is not None:  # a life has ended before its time: another one, so that every kill hits work
            assert run.returncode == 0
            assert_ended_as(last(finished), tmp_path)
            for folder in ("store", "runs"):
                shutil.rmtree(tmp_path / folder)
            continue
        killing(run, tmp_path)
        killed += 1
    ended = selftrain(tmp_path, "run", recipe)
    assert ended.returncode == 0, ended.stderr
    assert_ended_as(last(finished), tmp_path)
    assert claims_to_run(tmp_path) == []
    assert nobody_holds_the_gpu(tmp_path)


def assert_ended_as(undisturbed: Run, workspace: Path) -> None:
    """The same weights, tables and summary, and nothing done twice."""
    assert outcome(last(workspace)) == outcome(undisturbed)
    assert_nothing_was_computed_twice(workspace)


def delete(artifact: Path) -> None:
    """Deletes too much, as a person might."""
    shutil.rmtree(artifact)


def flip_a_bit(artifact: Path) -> None:
    """A disk that forgets."""
    weights = artifact / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(bytes(data))


@pytest.mark.slow
@pytest.mark.parametrize("lose", [pytest.param(delete, marks=pytest.mark.long), flip_a_bit])
def test_a_killed_rerun_of_a_lost_stage_ends_as_if_nothing_had_been(
    copy: Path, finished: Path, recipe: str, lose: Callable[[Path], None]
) -> None:
    moments, first = random.Random(1), last(copy)
    lose(Path(first.stage("student-1").artifact))
    for at_work_already in (False, True):
        rerun = start(copy, "rerun", first.id, "student-1", warm=at_work_already)
        if at_work_already:
            wait_until_at_work(copy, rerun, first=0)
        time.sleep(moments.uniform(0, WORK_SECONDS if at_work_already else START_SECONDS))
        assert rerun.poll() is None, "it was killed in the midst of its work"
        kill(rerun, copy)
    ended = selftrain(copy, "run", recipe)
    assert ended.returncode == 0, ended.stderr
    assert outcome(last(copy)) == outcome(last(finished))
    assert claims_to_run(copy) == []


def test_ctrl_c_checkpoints_and_says_how_to_continue(fresh: Path, recipe: str) -> None:
    words = command(fresh, "run", recipe, "--set", "teacher.train.steps=100000")
    changes = {"SELFTRAIN_TEST": str(fresh)}
    run = subprocess.Popen(words, env=environment(**changes), stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + HANG
        while not list(fresh.glob("store/attempts/train-*/scratch/*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(marked(str(fresh))) > 2, "the stage, the fork server and what ships to MLflow"
        os.kill(run.pid, signal.SIGINT)
        errors = run.communicate(timeout=HANG)[1]
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130, errors
    assert f"resume with: selftrain --workspace {fresh} rerun {last(fresh).id}" in errors
    assert_nobody_is_left(str(fresh))
    assert last(fresh).info["state"] == "interrupted"
    assert list(fresh.glob("store/attempts/train-*/scratch/*")), "the checkpoint is kept"
    assert claims_to_run(fresh) == []


def test_on_a_machine_without_gpus_no_lease_is_taken() -> None:
    assert visible_gpus() == [] or Path("/proc/driver/nvidia/gpus").is_dir()
