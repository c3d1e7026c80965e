"""`python -m tests.flows.faulty …` is `selftrain …` whose first student goes wrong in the midst of its work.

FAULT names what happens to it, in its own process, at step 20.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from selftrain.flows.cli.main import main
from selftrain.flows.rounds import stages
from selftrain.ssl_tasks.execution.listening import own_password
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from tests.flows.claims import GPU
from tests.flows.tiny import command, environment
from tests.warm import Command

STAGE, STEP = "student-1", 20
ONE_ROUND = ("--set", "rounds=1", "--set", "rounds.1.student.train.steps=40")
BALLAST = "ballast"  # in the workspace: fills the disk
MARK = "mark"  # in the workspace: the stage is at work, and waits there until the mark is taken away


class Faulty(StageContext):
    """The context of a training that goes wrong when it reports."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().metrics(step, values)
        if step == STEP:
            go_wrong(os.environ["FAULT"], self.cache.parent)


def go_wrong(how: str, workspace: Path) -> None:
    """Makes a process fail in a given way."""
    match how:
        case "defect":
            raise KeyError("surprise")
        case "killed":  # as the kernel does when memory runs out: this process alone
            os.kill(os.getpid(), signal.SIGKILL)
        case "disk_full":
            with (workspace / BALLAST).open("wb") as file:
                while True:  # ends in the error that every later write meets
                    file.write(bytes(4096))
                    file.flush()
        case "file_too_large":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        case "held":
            (workspace / MARK).touch()
            while (workspace / MARK).exists():
                time.sleep(0.05)


def train(context: StageContext) -> StageResult:
    """Body of `train`."""
    from selftrain.ssl_tasks.training.stage import train_model

    if multiprocessing.current_process().name == STAGE:
        context = Faulty(**{one.name: getattr(context, one.name) for one in fields(context)})
    return train_model(context)


def run_faulty(workspace: Path, recipe: str, how: str, **changes: str) -> Command:
    """Starts a run into a fault. A GPU is pretended (its lease is real, but no GPU is used), and all that comes from it
    is known by a mark."""
    given = {"FAULT": how, "SELFTRAIN_LOCKS": str(workspace / "locks"), "SELFTRAIN_TEST": str(workspace), **GPU}
    line = command(workspace, "run", recipe, *ONE_ROUND)
    line[line.index("selftrain")] = "tests.flows.faulty"
    return Command(line[1:], environment(**given, **changes), session=True)


def wait_for_the_mark(workspace: Path, run: Command) -> None:
    """Until the held stage is at work."""
    deadline = time.monotonic() + 600
    while not (workspace / MARK).exists():
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def let_go(workspace: Path, run: Command) -> str:
    """Lets the held stage continue until the run ends well; returns its output."""
    (workspace / MARK).unlink()
    errors = run.communicate(timeout=900)[1]
    assert run.returncode == 0, errors
    return errors


if __name__ == "__main__":
    stages.BODIES["train"] = "tests.flows.faulty:train"
    if path := os.environ.get("TELL_PASSWORD"):
        Path(path).write_text(own_password())
    sys.exit(main())
