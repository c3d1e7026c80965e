"""Stages in real processes: errors come back, dead workers are told of, none outlives the parent."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from selftrain.ssl_tasks.errors import SelftrainError, StageFailed, Transient, UserError
from selftrain.ssl_tasks.execution.process import stop_all
from selftrain.ssl_tasks.execution.stage import Request
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from tests.bodies import Behaviour, isolated
from tests.clock import HANG, until
from tests.conftest import kill_what_was_started_by

BODY = "tests.bodies:behave"


def request(how: str) -> Request:
    """A request to a body that behaves so."""
    return Request("greet", "greet", 1, BODY, Behaviour(how=how))


def test_a_worker_answers_like_a_function(workspace: Path) -> None:
    artifact = isolated(request("write"), workspace)
    assert artifact.file("result.txt").read_text() == "hello"
    assert artifact.summary == {"length": 5}
    assert f"write {os.getpid()}" not in (workspace / "executions.txt").read_text()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("user_error", UserError, "buy apples"),
        ("transient", Transient, "the network blinked"),
        ("defect", SelftrainError, "KeyError: 'surprise'"),
        ("killed", StageFailed, "killed by SIGKILL"),
        ("disk_full", SelftrainError, r"no space left to write .*\. Free some"),
    ],
)
def test_what_went_wrong_comes_back_as_what_it_was(
    workspace: Path, how: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        isolated(request(how), workspace)


def test_a_stage_that_takes_too_long_is_stopped(workspace: Path) -> None:
    runtime = RuntimeSettings(stage_timeout=1.0)
    with pytest.raises(StageFailed, match=r"longer than runtime.stage_timeout = 1 s"):
        isolated(request("hang"), workspace, runtime)
    assert not psutil.pid_exists(worker_pid(workspace))


def test_workers_are_asked_to_stop_once_and_finish_their_checkpoints(workspace: Path) -> None:
    seconds = ("0.0", "1.2")
    stages = [Request(f"greet-{at}", "greet", 1, BODY, Behaviour(how="checkpoint", text=at)) for at in seconds]
    with ThreadPoolExecutor() as pool:
        outcomes = [pool.submit(isolated, one, workspace) for one in stages]
        while len([path for path in workspace.glob("store/attempts/*/scratch/pid.txt") if path.read_text()]) < 2:
            assert not any(one.done() for one in outcomes)
            time.sleep(0.05)
        stop_all()
        assert [str(one.exception()) for one in outcomes] == ["its checkpoint is written"] * 2
    assert [(workspace / f"{at}.txt").read_text() for at in seconds] == ["whole"] * 2


def test_no_process_outlives_a_killed_parent(workspace: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "from tests.bodies import isolated\n"
        "from tests.test_process import request\n"
        "if __name__ == '__main__': isolated(request('hang'), Path(sys.argv[1]))\n"
    )
    root = Path(__file__).parent.parent
    parent = subprocess.Popen(
        [sys.executable, script, workspace], env={**os.environ, "PYTHONPATH": str(root)}, start_new_session=True
    )
    pid = worker_pid(workspace)
    family = [psutil.Process(pid), *psutil.Process(parent.pid).children(recursive=True)]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, left = psutil.wait_procs(family, timeout=HANG)  # they end by themselves
    assert not left


BUSY_TORCH = "import ctypes; ctypes.PyDLL(None).sleep(600)"  # as a large library is loaded: Python's lock is held


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked to kill it")
def test_a_fork_server_that_is_still_importing_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(BUSY_TORCH)
    code = (
        "from selftrain.ssl_tasks.execution.process import start_fork_server\n"
        "start_fork_server(); print('there', flush=True); input()"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, **pipes)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"there\n"
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        try:
            _, left = psutil.wait_procs(family, timeout=HANG)
            assert not left
        finally:
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def worker_pid(workspace: Path) -> int:
    """The pid that a hanging body wrote down."""
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        for path in workspace.glob("store/attempts/*/scratch/pid.txt"):
            if text := path.read_text():
                return int(text)
        time.sleep(0.05)
    raise AssertionError("the body never began")


def test_what_a_failed_test_has_started_is_ended_and_nothing_else_is() -> None:
    words = [sys.executable, "-c", "input()"]
    named = {one: {**os.environ, "PYTEST_CURRENT_TEST": f"tests/test_{one}.py::test (call)"} for one in ("a", "b")}
    failed, other = (subprocess.Popen(words, env=env, stdin=subprocess.PIPE) for env in named.values())
    try:
        until(lambda: b"test_a.py" in Path(f"/proc/{failed.pid}/environ").read_bytes())
        kill_what_was_started_by("tests/test_a.py::test")
        assert failed.wait(HANG) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for one in (failed, other):
            one.kill()
            one.communicate()
