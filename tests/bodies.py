"""Bodies of stages that behave as real ones do at their worst; run in real processes by the tests."""

import os
import signal
import time
from pathlib import Path

from selftrain.ssl_tasks.errors import Interrupted, Transient, UserError
from selftrain.ssl_tasks.execution.process import run_isolated
from selftrain.ssl_tasks.execution.stage import Request, StageContext, StageResult, begin_attempt, commit
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.training.checkpoints import stop_requests


def isolated(request: Request, workspace: Path, runtime: RuntimeSettings | None = None) -> Artifact:
    """The artifact of a request that has none yet, computed in a process of its own."""
    store, runtime = Store(workspace / "store"), runtime or RuntimeSettings()
    result = run_isolated(request, begin_attempt(request, store, runtime))
    return commit(request, result, store, runtime, 0.0, {})


class Behaviour(Section):
    """The behaviour of a test body."""

    how: str = "write"
    text: str = "hello"


def behave(context: StageContext) -> StageResult:
    """Writes a file, fails, hangs or dies, as its section says; counts its executions beside the workspace."""
    section = context.section
    assert isinstance(section, Behaviour)
    with (context.cache.parent / "executions.txt").open("a") as file:
        file.write(f"{section.how} {os.getpid()}\n")
    (context.output / "result.txt").write_text(section.text)
    match section.how:
        case "user_error":
            raise UserError("found a pear, expected an apple; buy apples")
        case "transient":
            raise Transient("the network blinked")
        case "defect":
            raise KeyError("surprise")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "disk_full":
            raise OSError(28, "No space left on device", str(context.output / "result.txt"))
        case "device":
            seen = {"device": context.runtime.device, "visible": os.environ["CUDA_VISIBLE_DEVICES"]}
            return StageResult(summary=seen)
        case "checkpoint":
            with stop_requests() as asked:
                (context.scratch / "pid.txt").write_text(str(os.getpid()))
                while asked.received is None:
                    time.sleep(0.01)
                time.sleep(float(section.text))
                (context.cache.parent / f"{section.text}.txt").write_text("whole")
            raise Interrupted("its checkpoint is written")
        case "hang":
            (context.scratch / "pid.txt").write_text(str(os.getpid()))
            time.sleep(600)
    return StageResult(summary={"length": len(section.text)}, parts={"all": section.text})
