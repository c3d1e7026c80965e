"""Shows a run in Prefect: its stages as tasks, its pauses, and its end.

Prefect orders, names, retries and shows stages; only the store decides whether a stage is done. A run that waits for
approval is Paused in Prefect, and `Resume` there approves it as `selftrain approve` does.
"""

import contextlib
import contextvars
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed, Paused
from prefect.tasks import Task, exponential_backoff

from selftrain.flows.prefect.server import server_in_use
from selftrain.flows.rounds.conductor import Orchestrator
from selftrain.ssl_tasks.errors import Transient
from selftrain.ssl_tasks.execution.devices import needed, visible_gpus
from selftrain.ssl_tasks.execution.stage import Outcome, Request
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, RuntimeSettings, TunedSettings
from selftrain.ssl_tasks.store.runs import Run, alive, all_runs, owner

log = logging.getLogger("selftrain")
LEASE_SECONDS = 60  # seconds after which a killed process's slots are free again
PAUSE_SECONDS = 2.0  # seconds between two checks of a paused run
PAUSED = "paused in Prefect; press Resume there to continue"
OVER = ("done", "failed", "interrupted", "crashed")
FLOWS = ("self-training", "compare")  # whose runs are marked with their process
VERBS = {
    "dataset": "read the data",
    "features": "compute",
    "train": "train",
    "given": "take",
    "predict": "label",
    "select": "select",
}


class PrefectOrchestrator(Orchestrator):
    """Runs every stage as a task of the current flow run."""

    def __init__(self, retries: int, own_signals: bool) -> None:
        self.retries, self.own_signals = retries, own_signals
        self.context = contextvars.copy_context()  # stages that run in threads need the flow run's context

    def details(self, workspace: Path) -> dict[str, Any]:
        """Returns the id of the flow run and the address of its server."""
        return {"prefect_flow_run": str(flow_run.get_id() or ""), "prefect_server": server_in_use(workspace)}

    def run_task(self, run: Run, request: Request, round_number: int, stage: Callable[[], Outcome]) -> Outcome:
        """Runs a stage as a task; first waits while the flow run is paused."""
        self.context.copy().run(wait_while_paused, run)
        return self.context.copy().run(as_task, request, round_number, stage, self.retries)

    def gpu_slots(self, request: Request, runtime: RuntimeSettings) -> AbstractContextManager[None]:
        """Holds a share of a server's GPUs over all hosts; on one host, locks decide which GPUs."""
        limit, count = os.environ.get("SELFTRAIN_GPU_LIMIT"), needed(request.stage, runtime)
        if not limit or not count or runtime.device == "cpu" or not visible_gpus():
            return contextlib.nullcontext()
        return _slots(limit, count)

    def paused(self, round_number: int) -> AbstractContextManager[Callable[[], bool]]:
        """Pauses the flow run; yields whether a person has pressed Resume."""
        return paused(round_number)


def person_name(request: Request, round_number: int) -> str:
    """Returns a stage's name for people, such as: train student · round 2 · wrn-28-4."""
    subject = request.name.rsplit("-", 1)[0] if round_number else request.name
    verb = "fine-tune" if isinstance(request.section, TunedSettings) else VERBS.get(request.stage, "")
    subject = subject.replace("finetune", "student")
    words = [f"{verb} {subject}" if request.stage in ("train", "given") else request.stage]
    if request.stage not in ("train", "given") and not round_number and request.name != request.stage:
        words = [request.name.replace("-", " ")]
    if round_number:
        words.append(f"round {round_number}")
    if isinstance(request.section, LearnerSettings):
        words.append(request.section.model.label)
    return " · ".join(words)


def as_task(request: Request, round_number: int, run: Callable[[], Outcome], retries: int) -> Outcome:
    """Runs a stage as a Prefect task; a reused stage ends in a state named Cached that carries its key."""
    outcomes: list[Outcome] = []

    @task(
        name=request.stage,
        task_run_name=person_name(request, round_number),
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=exponential_backoff(2),
        retry_jitter_factor=0.3,
        retry_condition_fn=_can_be_cured,
    )
    def stage() -> State[Any]:
        outcomes.append(run())
        reused = outcomes[-1].reused
        return Completed(name="Cached" if reused else "Completed", message=f"{request.name} {request.key[:12]}")

    state: State[Any] = stage(return_state=True)
    state.result()  # raises the stage's error
    return outcomes[-1]


@contextlib.contextmanager
def _slots(limit: str, count: int) -> Iterator[None]:
    """Holds slots of a limit. If the server is away, the stage runs with the locks of its host only."""
    slots = concurrency(limit, occupy=count, lease_duration=LEASE_SECONDS)
    try:
        slots.__enter__()
    except ConcurrencySlotAcquisitionError as error:
        log.warning(
            "the stage runs without a slot of the concurrency limit '%s', because Prefect gave none: %s", limit, error
        )
        yield
        return
    try:
        yield
    finally:
        try:
            slots.__exit__(None, None, None)
        except httpx.HTTPError as error:
            log.warning("a slot of '%s' could not be returned to Prefect; its lease will end: %s", limit, error)


def _can_be_cured(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, Transient) or isinstance(getattr(error, "__cause__", None), Transient)


@contextlib.contextmanager
def paused(round_number: int) -> Iterator[Callable[[], bool]]:
    """Pauses our flow run within the block; yields a function that returns whether a person has pressed Resume.

    The process keeps running, and the pause has no time limit. A block that ends by an error (a cancellation, a stopped
    process) does not change the state.
    """
    identity = UUID(flow_run.get_id())
    message = (
        f"round {round_number} waits for approval. Review its pseudo-labels, then press Resume, or "
        "run `selftrain approve` on its worker"
    )
    with get_client(sync_client=True) as client:
        pause: State[Any] | None = None
        with _patient("cannot be paused"):
            answer: OrchestrationResult[Any] = client.set_flow_run_state(identity, Paused(message=message))
            pause = answer.state if answer.status is SetStateStatus.ACCEPT else None

        def resumed() -> bool:
            with _patient("cannot be read"):
                return pause is not None and followed_by_running(client.read_flow_run_states(identity), pause)
            return False

        yield resumed
        with _patient("cannot be resumed"):
            if pause is not None and not resumed():
                client.resume_flow_run(identity)


def wait_while_paused(run: Run) -> None:
    """Waits while a person has paused the flow run; stages that already run are finished first.

    `paused` handles the run's own pause, for a round that waits for approval.
    """
    identity, told = UUID(flow_run.get_id()), False
    with get_client(sync_client=True) as client:
        while (state := _state(client, identity)) is not None and state.is_paused() and not run.info.get("waits_for"):
            if not told:
                told = True
                log.warning("%s is paused in Prefect; press Resume there to start the next stage", run.id)
                run.update(state="waiting", stopped=PAUSED)
                with _patient("cannot be updated"):  # so that the run's page shows it
                    message = f"{PAUSED}; no stage is running"
                    client.set_flow_run_state(identity, state.model_copy(update={"message": message}), force=True)
            time.sleep(PAUSE_SECONDS)
    if told:
        run.update(state="running", stopped="")


def _state(client: SyncPrefectClient, identity: UUID) -> State[Any] | None:
    """Returns the flow run's state, or None if the server is away."""
    with _patient("cannot be asked for its state"):
        return client.read_flow_run(identity).state
    return None


def followed_by_running(states: Sequence[State[Any]], pause: State[Any]) -> bool:
    """Returns whether Resume was pressed. A run that crashed or was cancelled, and runs again, was not approved."""
    after = sorted((one for one in states if one.timestamp > pause.timestamp), key=lambda one: one.timestamp)
    return bool(after) and after[0].is_running()


@contextlib.contextmanager
def _patient(what: str) -> Iterator[None]:
    """Logs errors of a server that is away, so that a run that waits for days is not ended by them."""
    try:
        yield
    except httpx.HTTPError as error:
        log.warning(
            "Prefect's flow run %s: %s. To approve a round without Prefect: selftrain approve",
            what,
            type(error).__name__,
        )


def tell_prefect(workspace: Path, server: str) -> None:
    """Tells Prefect about the end of runs whose process died or whose server was away.

    `server` is the address of the user's server, empty for the API of the workspace. Each run is reported once.
    """
    # Of several attempts at one flow run, the newest has the current state.
    latest = {run.info.get("prefect_flow_run"): run for run in all_runs(workspace)}
    silent = [run for run in latest.values() if _is_silent(run.info, server)]
    with get_client(sync_client=True) as client:
        for run in silent:
            _tell(client, run, server)
            run.update(prefect_told=True)
        _end_orphans(client)


def process_tag() -> str:
    """Returns a tag that marks a flow run with its process, for processes that die before they have a record."""
    return "process:" + json.dumps(owner())


def _end_orphans(client: SyncPrefectClient) -> None:
    """Ends flow runs that are recorded as running, but whose process on this host is gone."""
    unended = FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.PAUSED])
    )
    ours = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    for one in client.read_flow_runs(flow_filter=ours, flow_run_filter=FlowRunFilter(state=unended)):
        marks = [json.loads(tag.removeprefix("process:")) for tag in one.tags if tag.startswith("process:")]
        if marks and not alive(marks[0]):
            died: State[None] = Crashed(message="its process died and left no record; run it again")
            _end(client, one, died, died)


def _is_silent(info: dict[str, Any], server: str) -> bool:
    asked = info.get("prefect_flow_run") and info.get("prefect_server", "") == server
    return bool(asked) and info["state"] in OVER and not info.get("prefect_told")


def _tell(client: SyncPrefectClient, run: Run, server: str) -> None:
    """Ends a run's flow run, and the task runs that it left open."""
    number = UUID(run.info["prefect_flow_run"])
    try:
        one = client.read_flow_run(number)
    except ObjectNotFound:
        log.debug("Prefect does not know the flow run of %s", run.id)
        return
    if one.deployment_id is not None and server:  # a server's workers and automations handle these
        return
    _end(client, one, _ending(run), _ending(run, task=True))


def _end(client: SyncPrefectClient, one: FlowRun, state: State[None], of_tasks: State[None]) -> None:
    """Sets the state of a flow run, and of its task runs, where they have not ended."""
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[one.id]))):
        if task_run.state is None or not task_run.state.is_final():
            client.set_task_run_state(task_run.id, of_tasks, force=True)
    if one.state is None or not one.state.is_final():
        client.set_flow_run_state(one.id, state, force=True)


def _ending(run: Run, task: bool = False) -> State[None]:
    """Returns the end of a run as one of Prefect's states."""
    info = run.info
    match info["state"]:
        case "done":
            return Completed(message="" if task else info["stopped"])
        case "failed" if not task:
            return Failed(message=info["stopped"])
        case _:
            return Crashed(message="its process died; run it again to resume")
