"""Runs the stages of a run: turns each request into an artifact, records it, and tells the tracker."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from selftrain.flows.rounds.self_training import Pending
from selftrain.ssl_tasks.errors import Interrupted, StageFailed, UserError, describe
from selftrain.ssl_tasks.execution.process import run_isolated, stop_all
from selftrain.ssl_tasks.execution.progress import Display
from selftrain.ssl_tasks.execution.stage import Outcome, Request, StageContext, begin_attempt, commit, look_up
from selftrain.ssl_tasks.settings.run_config import RunConfig, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, Store, write_atomically
from selftrain.ssl_tasks.store.runs import (
    Run,
    RunState,
    StageRecord,
    StageState,
    advice,
    approval_file,
    corrections_file,
)
from selftrain.ssl_tasks.tracking.tracker import Tracker

log = logging.getLogger("selftrain")
APPROVAL_SECONDS = 0.5  # seconds between two checks for approval


def never() -> bool:
    """Returns False: without an orchestrator, nothing can ask for a stop or an approval."""
    return False


class Orchestrator:
    """Starts the stages of a run and shows them; this default does neither. (For Prefect: `flows/prefect/tasks.py`.)"""

    own_signals = True  # False: the caller has a handler of SIGTERM that raises

    def details(self, workspace: Path) -> dict[str, Any]:
        """Returns entries for the run's record."""
        return {}

    def run_task(self, run: Run, request: Request, round_number: int, stage: Callable[[], Outcome]) -> Outcome:
        """Calls `stage` when nothing delays it, and again after a temporary error."""
        return stage()

    def gpu_slots(self, request: Request, runtime: RuntimeSettings) -> AbstractContextManager[None]:
        """Holds the stage's share of the GPUs that several hosts have."""
        return nullcontext()

    def paused(self, round_number: int) -> AbstractContextManager[Callable[[], bool]]:
        """Shows that a round waits for approval; yields whether a person has approved it there."""
        return nullcontext(never)


class Conductor:
    """Runs the stages of one run, with their records, logs and tracking; `force` names stages to recompute.

    Without a `run`, stages are neither recorded nor tracked, and their logs are in the workspace's folder `logs`.
    """

    def __init__(
        self,
        config: RunConfig,
        workspace: Path,
        run: Run | None = None,
        *,
        tracker: Tracker | None = None,
        tracked: str = "",
        force: frozenset[str] = frozenset(),
        orchestrator: Orchestrator | None = None,
        display: Display | None = None,
        asked_to_stop: Callable[[], bool] = never,
    ) -> None:
        self.config, self.workspace, self.run_record = config, workspace, run
        self.tracker, self.tracked = tracker, tracked  # tracked: the id of the pipeline's run
        self.force, self.orchestrator, self.display = force, orchestrator or Orchestrator(), display
        self.asked_to_stop = asked_to_stop  # whether a signal has asked to stop, in case its exception was swallowed
        self.level = logging.DEBUG if run is None else logging.INFO
        self.store = Store(workspace / "store")
        self.pool = ThreadPoolExecutor(max_workers=config.runtime.parallel, thread_name_prefix="stage")
        self.room = BoundedSemaphore(
            config.runtime.parallel
        )  # for the pool's stages, and for one stage outside the pool
        self.stopping = False
        self.orders: dict[str, int] = {}

    def run_stage(self, request: Request, round_number: int = 0) -> Outcome:
        """Runs or reuses a stage: lock → look up → run in a process of its own → commit → record → tell the tracker.

        A failure is recorded and raised as StageFailed with the stage's name and log.
        """
        started, runtime, force = time.monotonic(), self.config.runtime, request.name in self.force
        record = self._began(request, round_number)
        attempt = ""
        try:
            self._write(record)
            if self.asked_to_stop():
                raise Interrupted("asked to stop")
            with self.store.lock(request.stage, request.key):
                artifact, replaced = look_up(request, self.store, runtime, force)
                seconds, reused = time.monotonic() - started, artifact is not None
                if artifact is None:
                    context = begin_attempt(request, self.store, runtime)
                    with (
                        self._followed(request, context) as attempt,
                        self.room,
                        self.orchestrator.gpu_slots(request, runtime),
                    ):
                        if self.stopping:
                            raise Interrupted("the run ended before this stage could start")
                        result = run_isolated(request, context, Path(record.log))
                    provenance = {"run": self.run_record.id} if self.run_record is not None else {}
                    seconds = time.monotonic() - started
                    artifact = commit(request, result, self.store, runtime, seconds, provenance, force)
            self._write(
                replace(
                    record,
                    state="reused" if reused else "computed",
                    reason=replaced,
                    artifact=str(artifact.path),
                    digest=artifact.digest,
                    seconds=round(seconds, 3),
                )
            )
            if self.tracker is not None and reused:
                self.tracker.link_reused(self.tracked, request.name, artifact, round_number)
            elif self.tracker is not None:
                self.tracker.finish_stage(attempt, artifact, round_number)
        except BaseException as error:
            self._failed(record, error)
            if isinstance(error, (StageFailed, UserError, Interrupted)) or not isinstance(error, Exception):
                raise
            raise StageFailed(request.name, reason_of(error), record.log) from error
        log.log(self.level, "%s %s in %.1f s", request.name, "reused" if reused else "computed", seconds)
        return Outcome(artifact, reused, seconds, replaced)

    def _began(self, request: Request, round_number: int) -> StageRecord:
        """Writes and returns the record of a stage that begins."""
        log.log(self.level, "%s …", request.name)
        if self.run_record is not None:
            log_file = self.run_record.path / "logs" / f"{request.name}.log"
        else:
            log_file = self.workspace / "logs" / f"{request.name}-{request.key[:12]}.log"
        return StageRecord(
            name=request.name,
            stage=request.stage,
            state="running",
            key=request.key,
            key_parts=request.key_parts(),
            round=round_number,
            started=time.time(),
            order=self._order(request),
            log=str(log_file),
        )

    def _order(self, request: Request) -> int:
        """Returns a stage's place among those of the run, in the order of the requests."""
        return self.orders.setdefault(request.name, len(self.orders))

    def _write(self, record: StageRecord) -> None:
        if self.run_record is not None:
            self.run_record.record(record)

    def _failed(self, record: StageRecord, error: BaseException) -> None:
        """Records how a stage failed; a full disk must not hide the reason."""
        state: StageState = "interrupted" if interrupted(error) else "failed"
        try:
            self._write(replace(record, state=state, reason=reason_of(error), seconds=time.time() - record.started))
        except OSError as full:
            log.error("the record that %s is %s cannot be written: %s", record.name, state, full)

    @contextmanager
    def _followed(self, request: Request, context: StageContext) -> Iterator[str]:
        """Shows a stage's progress and lets the tracker follow its attempt within the block; yields its id."""
        with self.display.stage(request.name) if self.display is not None else nullcontext() as show:
            if self.run_record is None or self.tracker is None:
                yield ""
                return
            attempt = self.tracker.start_stage(self.tracked, request.name, {"selftrain.key": request.key})
            assert context.events is not None
            follower = self.tracker.follow(attempt, context.events, show)
            try:
                yield attempt
            except BaseException as error:
                self.run_record.free_reserve()
                self.tracker.fail_stage(attempt, reason_of(error), interrupted(error))
                raise
            finally:
                follower.stop()

    def fingerprint(self, config: RunConfig) -> str:
        """Returns the digest of the source's contents."""
        from selftrain.ssl_tasks.data.sources import fingerprint

        def say(note: str) -> None:
            log.warning("data: %s", note)

        return fingerprint(config.data, self.workspace / "cache", say)

    def run(self, request: Request, round_number: int) -> Artifact:
        """Returns the stage's artifact."""
        stage = partial(self.run_stage, request, round_number)
        if self.run_record is None:
            return stage().artifact
        return self.orchestrator.run_task(self.run_record, request, round_number, stage).artifact

    def submit(self, request: Request, round_number: int) -> Pending:
        """Begins a stage at the same time as others if there is room."""
        self._order(request)  # the threads of the pool may begin in another order
        if self.config.runtime.parallel == 1:
            artifact = self.run(request, round_number)
            return lambda: artifact
        return self.pool.submit(self.run, request, round_number).result

    def corrections(self) -> Path | None:
        """Returns the file of corrections of this run's labels as it is now."""
        return corrections_file(self.workspace, self.config.name)

    def hold(self, round_number: int, selection: Artifact) -> None:
        """Waits for the mark that `selftrain approve` leaves.

        The mark stays, so a run that died while it waited continues after an approval."""
        approval = approval_file(self.workspace, selection)
        if self.run_record is None or approval.exists():
            return
        self.run_record.update(state="waiting", waits_for={"round": round_number, "selection": selection.digest})
        log.warning("round %d waits for approval. %s", round_number, advice(self.run_record))
        with self.orchestrator.paused(round_number) as approved:
            while not approval.exists():
                if approved():
                    self.approve(selection)
                time.sleep(APPROVAL_SECONDS)
        self.run_record.update(state="running", waits_for=None)

    def approve(self, selection: Artifact) -> None:
        """Leaves the mark, with the corrections that were added while the selection waited."""
        approval = approval_file(self.workspace, selection)
        if self.run_record is not None and not approval.exists():
            write_atomically(approval, f"{self.run_record.id} {time.time():.0f}\n")

    def stop(self) -> None:
        """Ends the running stages; waiting stages do not begin."""
        self.stopping = True
        stop_all()

    def close(self) -> None:
        """Ends the pool; no further stage can begin."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def reason_of(error: BaseException) -> str:
    """Returns why a stage failed, in one line without the stage's name."""
    if interrupted(error):
        return str(error) if isinstance(error, Interrupted) else "asked to stop"
    reason = error.reason if isinstance(error, StageFailed) else describe(error)["message"]
    return (reason.splitlines() or [""])[0]


def interrupted(error: BaseException) -> bool:
    """Returns whether the stage was interrupted: by our own error, Ctrl-C, or the signal that Prefect raises as an
    exception."""
    return isinstance(error, Interrupted) or not isinstance(error, Exception)


def finished(run: Run, error: BaseException | None, stopped: str = "") -> None:
    """Records how the run ended."""
    state: RunState = "done" if error is None else "interrupted" if interrupted(error) else "failed"
    if state == "interrupted":
        stopped = "asked to stop by Ctrl-C, a signal or Prefect"
    elif error is not None:
        stopped = (describe(error)["message"].splitlines() or [""])[0]
    try:
        run.free_reserve()
        run.update(state=state, stopped=stopped, finished=time.time())
    except OSError as full:
        if error is None:
            raise
        log.error("the record that %s is %s cannot be written: %s", run.id, state, full)
