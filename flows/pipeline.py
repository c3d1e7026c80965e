"""A run from its configuration to its summary: plain functions, or the same within a Prefect flow."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flows.conductor import Conductor, finished
from flows.reaper import mend_dead_runs
from flows.self_training import self_training
from ssl_tasks.config import RunConfig
from ssl_tasks.errors import Interrupted
from ssl_tasks.process import stop_all
from ssl_tasks.runs import Run

Prepare = Callable[[Conductor], None]


def run_pipeline(
    config: RunConfig,
    workspace: Path,
    force: frozenset[str] = frozenset(),
    isolate: bool = True,
    prepare: Prepare | None = None,
    command: str = "",
) -> Run:
    """Runs the rounds and returns the run's record. `prepare` may wrap the stages (Prefect does)."""
    mend_dead_runs(workspace)
    run = Run.create(workspace, config, command=command)
    conductor = Conductor(run, config, force=force, isolate=isolate)
    if prepare is not None:
        prepare(conductor)
    with _termination_is_interruption():
        try:
            summary = self_training(config, conductor)
        except BaseException as error:
            stop_all()
            finished(run, error)
            raise
        finally:
            conductor.close()
    run.write_summary(summary.as_json())
    finished(run, None, summary.stopped)
    return run


@contextmanager
def _termination_is_interruption() -> Iterator[None]:
    """SIGTERM becomes Interrupted in the main thread, as Ctrl-C becomes KeyboardInterrupt."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted("asked to stop; run the same command again to go on")

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
