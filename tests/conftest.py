"""Shared fixtures. Every test runs offline, on one thread, in a folder of its own."""

import atexit
import contextlib
import gc
import os
import shutil
import signal
import tempfile

os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", DO_NOT_TRACK="true", MLFLOW_DISABLE_TELEMETRY="true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nets this small only lose by more
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
if "PREFECT_HOME" not in os.environ:  # one for all processes of this session, and never a person's own
    os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="selftrain-tests-")
    atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.store.artifacts import Artifact
from tests import warm

STARTED, WORKERS_SECONDS = pytest.StashKey[list[psutil.Process]](), pytest.StashKey[list[float]]()

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as nohup has it; what we start would inherit it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """One process for the whole session forks the commands that tests run (`tests.warm`)."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        session = contextlib.ExitStack()
        folder = session.enter_context(tempfile.TemporaryDirectory(prefix="selftrain-warm-"))
        config.stash[STARTED] = [session.enter_context(warm.server(Path(folder) / "socket"))]
        config.stash[WORKERS_SECONDS] = []
        config.add_cleanup(session.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of several processes begins with its share of the slow tests: none of them is left for the end."""
    share = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("long")]
    quick = [item for item in items if item not in set(slow)]
    length = -(-len(quick) // share)
    items[:] = [item for at in range(share) for item in (*slow[at::share], *quick[at * length : (at + 1) * length])]


def pytest_collection() -> None:
    """Tests and what they test are imported without garbage collection."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on the collector looks at what tests make, not at half a million objects of torch's and Prefect's."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Ends the processes that a failed test started and did not end."""
    report = yield
    if report.when == "call" and report.failed:
        kill_what_was_started_by(item.nodeid)
    return report


def kill_what_was_started_by(test: str) -> None:
    """Ends every process that has inherited the name of the test from pytest's environment."""
    mark = f"PYTEST_CURRENT_TEST={test} (call)".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Frees what a library would complain about at its end. A worker reports its CPU time."""
    gc.unfreeze()
    if (answer := getattr(session.config, "workeroutput", None)) is not None:
        answer["cpu_seconds"] = cpu_seconds(psutil.Process())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """pytest-xdist's worker has ended."""
    node.config.stash[WORKERS_SECONDS].append(node.workeroutput["cpu_seconds"])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What the session has cost: seconds of a CPU, of this process and of all that came from it."""
    workers = config.stash[WORKERS_SECONDS]
    if workers:
        ours = psutil.Process().cpu_times()
        total = ours.user + ours.system + sum(map(cpu_seconds, config.stash[STARTED])) + sum(workers)
    else:
        total = cpu_seconds(psutil.Process())
    terminalreporter.write_line(f"{total:.0f} CPU seconds ({total / 60:.1f} minutes), with all processes")


def cpu_seconds(process: psutil.Process) -> float:
    """Seconds that a process and its children have used so far: those that live, and those that it has waited for."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Servers start for `-m stack` alone (`make test-stack`)."""
    asked = "stack" in config.option.markexpr and "not stack" not in config.option.markexpr
    return True if collection_path == Path(__file__).parent / "stack" and not asked else None


class RunStage(Protocol):
    """Runs a stage's body inline in the test's workspace and returns its artifact."""

    def __call__(
        self, body: str, section: Section, inputs: Mapping[str, Artifact] | None = None, **request: Any
    ) -> Artifact: ...


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of this session's test processes share (pytest-xdist's workers)."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace."""
    return tmp_path / "workspace"


@pytest.fixture
def run_stage(workspace: Path) -> RunStage:
    """`run_stage("selftrain.ssl_tasks.data.dataset:build_dataset", DataSettings())` → Artifact."""

    def run(body: str, section: Section, inputs: Mapping[str, Artifact] | None = None, **request: Any) -> Artifact:
        stage = body.rpartition(":")[2]
        return execute(
            Request(stage, stage, 1, body, section, inputs or {}, **request), workspace, RuntimeSettings(threads=1)
        ).artifact

    return run
