"""Answers stages for one run: executes or reuses, writes the record, tells the tracker, shows progress."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import BoundedSemaphore

from selftrain.flows.rounds.progress import Show, display
from selftrain.flows.rounds.self_training import Pending
from selftrain.ssl_tasks.errors import Interrupted, StageFailed, UserError
from selftrain.ssl_tasks.execution.execute import Outcome, Request, execute, run_inline
from selftrain.ssl_tasks.execution.process import describe, run_isolated, stop_all
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.advice import advice
from selftrain.ssl_tasks.store.artifacts import Artifact, Store, write_atomically
from selftrain.ssl_tasks.store.runs import Run, RunState, StageRecord, StageState, approval_file, corrections_file
from selftrain.ssl_tasks.tracking.tracker import Tracker

log = logging.getLogger("selftrain")
APPROVAL_SECONDS = 0.5  # between two looks for a person's approval
Around = Callable[[Request, int, Callable[[], Outcome]], Outcome]


class Conductor:
    """One run's answers. `around` lets Prefect wrap each stage in a task; `force` names stages to recompute."""

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        tracker: Tracker | None = None,
        tracked: str = "",
        force: frozenset[str] = frozenset(),
        isolate: bool = True,
    ) -> None:
        self.run_record, self.config, self.force, self.isolate = run, config, force, isolate
        self.tracker, self.tracked = tracker, tracked  # tracked: the pipeline run's id
        self.store = Store(run.workspace / "store")
        self.pool = ThreadPoolExecutor(max_workers=config.runtime.parallel, thread_name_prefix="stage")
        self.room = BoundedSemaphore(config.runtime.parallel)  # for the pool's stages, and for one beside them
        self.stopping = False
        self.asked: Callable[[], bool] = _nobody  # whether a signal asked us to stop
        self.orders: dict[str, int] = {}
        self.around: Callable[[Request, int, Callable[[], Outcome]], Outcome] = lambda _request, _round, answer: (
            answer()
        )
        self.slots: Callable[[Request], AbstractContextManager[None]] = lambda _request: nullcontext()
        self.display = display()
        self.paused: Callable[[int], AbstractContextManager[Callable[[], bool]]] = lambda _round: nullcontext(_nobody)

    def fingerprint(self, config: RunConfig) -> str:
        from selftrain.ssl_tasks.data.sources import fingerprint

        def say(note: str) -> None:
            log.warning("data: %s", note)

        return fingerprint(config.data, self.run_record.workspace / "cache", say)

    def run(self, request: Request, round_number: int) -> Artifact:
        order = self.orders.setdefault(request.name, len(self.orders))
        return self.around(request, round_number, lambda: self.answer(request, round_number, order)).artifact

    def submit(self, request: Request, round_number: int) -> Pending:
        if self.config.runtime.parallel == 1:
            artifact = self.run(request, round_number)
            return lambda: artifact
        order = self.orders.setdefault(request.name, len(self.orders))
        future = self.pool.submit(self.around, request, round_number, lambda: self.answer(request, round_number, order))
        return lambda: future.result().artifact

    def corrections(self) -> Path | None:
        return corrections_file(self.run_record.workspace, self.config.name)

    def hold(self, round_number: int, selection: Artifact) -> None:
        """Waits for the mark that `selftrain approve` leaves; it stays, so a run that died while waiting continues.

        `paused` shows the wait elsewhere, and says whether the round was approved there.
        """
        approval = approval_file(self.run_record.workspace, selection)
        if approval.exists():
            return
        self.run_record.update(state="waiting", waits_for={"round": round_number, "selection": selection.digest})
        log.warning("round %d waits for approval. %s", round_number, advice(self.run_record))
        with self.paused(round_number) as approved:
            while not approval.exists():
                if approved():
                    self.approve(selection)
                time.sleep(APPROVAL_SECONDS)
        self.run_record.update(state="running", waits_for=None)

    def approve(self, selection: Artifact) -> None:
        approval = approval_file(self.run_record.workspace, selection)
        if not approval.exists():
            write_atomically(approval, f"{self.run_record.id} {time.time():.0f}\n")

    def answer(self, request: Request, round_number: int, order: int) -> Outcome:
        """Executes one stage and writes down how it went; errors become StageFailed with name and log."""
        record = StageRecord(
            name=request.name,
            stage=request.stage,
            state="running",
            key=request.key,
            key_parts=request.key_parts(),
            round=round_number,
            started=time.time(),
            order=order,
            log=str(self.run_record.path / "logs" / f"{request.name}.log"),
        )
        log.info("%s …", request.name)
        try:
            self.run_record.record(record)
            if self.asked():
                raise Interrupted("asked to stop")
            outcome = self._execute(request, record)
        except BaseException as error:
            state: StageState = "interrupted" if interrupted(error) else "failed"
            reason = reason_of(error)
            self._note(replace(record, state=state, reason=reason, seconds=time.time() - record.started))
            if isinstance(error, (StageFailed, UserError, Interrupted)) or not isinstance(error, Exception):
                raise
            raise StageFailed(request.name, reason, record.log) from error
        self.run_record.record(
            replace(
                record,
                state="reused" if outcome.reused else "computed",
                reason=outcome.replaced,
                artifact=str(outcome.artifact.path),
                digest=outcome.artifact.digest,
                seconds=round(outcome.seconds, 3),
            )
        )
        log.info("%s %s in %.1f s", request.name, "reused" if outcome.reused else "computed", outcome.seconds)
        return outcome

    def _execute(self, request: Request, record: StageRecord) -> Outcome:
        attempts: list[str] = []

        def runner(request: Request, context: StageContext) -> StageResult:
            with self.display.stage(request.name) as show:
                return self._tracked(request, context, record, attempts, show)

        provenance = {"run": self.run_record.id}
        workspace, runtime = self.run_record.workspace, self.config.runtime
        outcome = execute(request, workspace, runtime, runner, request.name in self.force, provenance)
        if self.tracker is not None and outcome.reused:
            self.tracker.link_reused(self.tracked, request.name, outcome.artifact, record.round)
        elif self.tracker is not None:
            self.tracker.finish_stage(attempts[-1], outcome.artifact, record.round)
        return outcome

    def _tracked(
        self, request: Request, context: StageContext, record: StageRecord, attempts: list[str], show: Show
    ) -> StageResult:
        """One attempt, which the tracker follows."""
        if self.tracker is None:
            return self._work(request, context, record)
        attempts.append(self.tracker.start_stage(self.tracked, request.name, {"selftrain.key": request.key}))
        follower = self.tracker.follow(attempts[-1], context.events) if context.events else None
        if follower is not None:
            follower.show = show
        try:
            return self._work(request, context, record)
        except BaseException as error:
            self.run_record.free_reserve()
            self.tracker.fail_stage(attempts[-1], reason_of(error), interrupted(error))
            raise
        finally:
            if follower is not None:
                follower.stop()

    def _note(self, record: StageRecord) -> None:
        """Writes down how a stage failed; a full disk must not hide why."""
        try:
            self.run_record.record(record)
        except OSError as error:
            log.error("the record that %s is %s cannot be written: %s", record.name, record.state, error)

    def _work(self, request: Request, context: StageContext, record: StageRecord) -> StageResult:
        with self.room, self.slots(request):
            if self.stopping:
                raise Interrupted("the run ended before this stage could start")
            return run_isolated(request, context, Path(record.log)) if self.isolate else run_inline(request, context)

    def stop(self) -> None:
        """Ends the stages that run; those that wait for room do not begin."""
        self.stopping = True
        stop_all()

    def close(self) -> None:
        """No more stages."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def reason_of(error: BaseException) -> str:
    """Why a stage failed, in one line, for a place that has the stage's name already."""
    if interrupted(error):
        return str(error) if isinstance(error, Interrupted) else "asked to stop"
    reason = error.reason if isinstance(error, StageFailed) else str(describe(error)["message"])
    return (reason.splitlines() or [""])[0]


def _nobody() -> bool:
    return False


def interrupted(error: BaseException) -> bool:
    """Returns whether the stage was interrupted: by our own error, Ctrl-C, or the signal that Prefect raises as an
    exception."""
    return isinstance(error, Interrupted) or not isinstance(error, Exception)


def finished(run: Run, error: BaseException | None, stopped: str = "") -> None:
    """Writes how the run ended."""
    state: RunState = "done" if error is None else "interrupted" if interrupted(error) else "failed"
    if state == "interrupted":
        stopped = "asked to stop by Ctrl-C, a signal or Prefect"
    elif error is not None:
        stopped = (str(describe(error)["message"]).splitlines() or [""])[0]
    try:
        run.free_reserve()
        run.update(state=state, stopped=stopped, finished=time.time())
    except OSError as full:
        if error is None:
            raise
        log.error("the record that %s is %s cannot be written: %s", run.id, state, full)
