"""A stage that fails says so, leaves nothing behind that runs or claims to, and `run` and `rerun` resume from it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selftrain.ssl_tasks.store.locks import file_lock
from tests.flows.claims import assert_nobody_is_left, claims_to_run, nobody_holds_the_gpu
from tests.flows.faulty import BALLAST, ONE_ROUND, run_faulty
from tests.flows.tiny import last, outcome, selftrain, states

NEW = {"student-1", "evaluate-1", "gate-1"}  # what this asks that the finished run has not answered


@pytest.fixture(scope="module")
def undisturbed(finished: Path, recipe: str, shared_folder: Path) -> dict[str, Any]:
    """The result of a run without faults, computed by the first test process that needs it."""
    workspace = shared_folder / "undisturbed"
    with file_lock(shared_folder / "undisturbed.lock"):
        if not workspace.exists():
            shutil.copytree(finished, workspace)
            assert selftrain(workspace, "run", recipe, *ONE_ROUND, "--no-prefect").returncode == 0
    return outcome(last(workspace))


def assert_failed(workspace: Path, recipe: str, how: str, reason: str) -> None:
    """Runs into the fault; every promise of a failed stage is kept."""
    run = run_faulty(workspace, recipe, how)
    errors = run.communicate(timeout=900)[1]
    assert run.returncode == 3, errors
    message = [line for line in errors.splitlines() if line.startswith("selftrain: ")]
    assert len(message) == 1
    assert message[0].startswith("selftrain: stage 'student-1' failed: ")
    assert reason in message[0]
    assert "resume with: selftrain" in errors
    assert "Traceback" not in errors
    shown = selftrain(workspace, "status", "--json")
    answer = json.loads(shown.stdout)
    stages = {stage["name"]: stage for stage in answer["stages"]}
    assert answer["state"] == "failed"
    assert answer["stopped"].startswith("stage 'student-1' failed: ")
    assert stages["student-1"]["state"] == "failed"
    assert reason in stages["student-1"]["reason"]
    assert "\n" not in answer["stopped"] + stages["student-1"]["reason"]
    assert {stages[name]["state"] for name in NEW - {"student-1"}} == {"pending"}
    assert {stage["state"] for name, stage in stages.items() if name not in NEW} == {"reused"}
    assert_nobody_is_left(str(workspace))
    assert nobody_holds_the_gpu(workspace)


def assert_goes_on(workspace: Path, recipe: str, undisturbed: dict[str, Any], verb: str) -> None:
    """`run` or `rerun`, from the failure: the digests of an undisturbed run, and nothing done twice."""
    done = selftrain(workspace, *{"run": ("run", recipe, *ONE_ROUND), "rerun": ("rerun", "last", "student-1")}[verb])
    assert done.returncode == 0, done.stderr
    assert outcome(last(workspace)) == undisturbed
    assert {name for name, state in states(last(workspace)).items() if state == "computed"} == NEW
    assert claims_to_run(workspace) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason", "verb"),
    [
        ("defect", "KeyError: 'surprise'", "run"),
        ("killed", "its process was killed by SIGKILL, which often means that the host ran out of memory", "rerun"),
        ("file_too_large", "no space left to write", "run"),
    ],
)
def test_a_failed_stage_names_its_cause_and_can_be_resumed(
    copy: Path, recipe: str, undisturbed: dict[str, Any], how: str, reason: str, verb: str
) -> None:
    assert_failed(copy, recipe, how, reason)
    assert claims_to_run(copy) == []
    assert_goes_on(copy, recipe, undisturbed, verb)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB, where we may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk; a limit on the size of files is tested everywhere")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_does_not_hide_what_happened(
    small_disk: Path, finished: Path, recipe: str, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    workspace = Path(shutil.copytree(finished, small_disk / "workspace"))
    assert_failed(workspace, recipe, "disk_full", "no space left to write")
    (workspace / BALLAST).unlink()
    assert_goes_on(Path(shutil.copytree(workspace, tmp_path / "copy")), recipe, undisturbed, "rerun")


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so(small_disk: Path, finished: Path, recipe: str) -> None:
    workspace = Path(shutil.copytree(finished, small_disk / "workspace"))
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'ballast'}"], capture_output=True, check=False)
    done = selftrain(workspace, "run", recipe, *ONE_ROUND)
    assert done.returncode == 3, done.stderr
    assert "no space left to write" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert selftrain(workspace, "status", "--json").returncode == 0
