"""The pipeline as a Prefect flow."""

import contextvars
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.events import emit_event
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed

from selftrain.flows.environment import set_environment, workspace_folder
from selftrain.flows.prefect.events import CHAMPION, NOTHING_NEW, RESTARTED
from selftrain.flows.prefect.holding import paused, wait_while_paused
from selftrain.flows.prefect.local_api import check_reachable, server_in_use
from selftrain.flows.prefect.names import flow_run_name
from selftrain.flows.prefect.page import publish
from selftrain.flows.prefect.tasks import as_task, gpu_slots
from selftrain.flows.rounds.conductor import Conductor
from selftrain.flows.rounds.pipeline import run_pipeline
from selftrain.flows.rounds.reaper import process_tag
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.execution.execute import Outcome, Request
from selftrain.ssl_tasks.execution.parent import die_with_parent
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run, all_runs

die_with_parent()  # of `selftrain up`, where its runner started us
log = logging.getLogger("selftrain")
# The recipe of the run that this process was asked for; a deployment's runs have their configuration alone.
WRITTEN: ContextVar[Mapping[str, Any] | None] = ContextVar("written", default=None)
RETRIES = 4  # of a request, with growing pauses: a server that restarts has half a minute


@flow(name="self-training", flow_run_name=flow_run_name, persist_result=False, validate_parameters=True)
def self_training_flow(config: RunConfig, workspace: Path | None = None, force: tuple[str, ...] = ()) -> State[Any]:
    """Teacher → pseudo-labels → student, round by round, on the data of `config`.

    Args:
        config: the recipe; the form edits it, a YAML file is its home
        workspace: the folder of the store, the tracking and the runs
        force: names of stages to recompute
    """
    folder = workspace_folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    set_environment(folder)
    if deployment.get_id():
        _refuse_endless_crashes(config.runtime.restarts)
    # In a deployment a SIGTERM is a person's cancelling or a crash; Prefect knows, and its own handler tells it.
    own_signals = not deployment.get_id()
    with TagsContext(current_tags=set()):  # the flow run's tag is not its tasks': each would ask for a slot of it
        run = run_pipeline(
            config,
            folder,
            frozenset(force),
            prepare=_within_prefect,
            own_signals=own_signals,
            written=WRITTEN.get(),
        )
    _publish(run)
    if run.info.get("champion"):
        _tell_champion(run)
    answer = {"run": run.id, **run.summary}
    if run.nothing_new and flow_run.run_count < 2:  # a run that was started again met what it had made itself
        return Completed(name=NOTHING_NEW, message="every stage was reused; nothing was recomputed", data=answer)
    return Completed(message=run.summary["stopped"], data=answer)


def run_as_flow(
    config: RunConfig, folder: Path, force: tuple[str, ...] = (), written: Mapping[str, Any] | None = None
) -> Run:
    """Runs the flow to its end. Prefect shows and never decides: a run that is done stays so if a server goes away."""
    before = {run.id for run in all_runs(folder)}
    told = False
    token = WRITTEN.set(written)
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}), tags(process_tag()):
            state: Any = self_training_flow(config, folder, force, return_state=True)
        told = True
        state.result()
    except Exception as error:  # noqa: BLE001 - whatever Prefect raises where its server is away
        run = _ours(folder, before)
        if run is None or run.info["state"] != "done":
            raise first_of_ours(error) from None
        log.warning(
            "Prefect could not be told how %s ended (%s); the next run will tell it", run.id, type(error).__name__
        )
    finally:
        WRITTEN.reset(token)
        if told and (run := _ours(folder, before)) is not None:
            run.update(prefect_told=True)
    run = _ours(folder, before)
    assert run is not None, "a flow that ended well has made a run"
    return run


def _ours(folder: Path, before: set[str]) -> Run | None:
    """The run that this process has just made, if it came so far."""
    made = (run for run in all_runs(folder) if run.id not in before and run.info["pid"] == os.getpid())
    return next(made, None)


def first_of_ours(error: BaseException) -> BaseException:
    """Returns our own error behind one of Prefect's, else the error itself."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, SelftrainError):
        at = at.__context__
    return at or error


def _within_prefect(conductor: Conductor) -> None:
    """Every stage becomes a task of the flow run that we are in."""
    context = contextvars.copy_context()
    runtime = conductor.config.runtime
    server = server_in_use(conductor.run_record.workspace)
    conductor.run_record.update(prefect_flow_run=str(flow_run.get_id() or ""), prefect_server=server)

    def around(request: Request, round_number: int, answer: Callable[[], Outcome]) -> Outcome:
        # Stages that run at the same time do so in threads, which must find the flow run too.
        context.copy().run(wait_while_paused, conductor.run_record)
        return context.copy().run(as_task, request, round_number, answer, runtime.retries)

    conductor.around, conductor.paused = around, paused
    conductor.slots = lambda request: gpu_slots(request.stage, runtime)


def _refuse_endless_crashes(restarts: int) -> None:
    """Ends a run that crashed again and again: whatever kills it would kill it for ever."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(flow_run.get_id()))
    if (crashes := crashes_in_a_row(states)) > restarts:
        raise SelftrainError(
            f"crashed {crashes} times in a row, more than runtime.restarts = {restarts}. Find the cause in "
            "its log, then press Retry"
        )


def crashes_in_a_row(states: Sequence[State[Any]]) -> int:
    """Counts the crashes of a run since a person or a schedule started it, from the history of its states."""
    ordered = sorted(states, key=lambda state: state.timestamp)
    asked = [
        at
        for at, state in enumerate(ordered)
        # Late and AwaitingConcurrencySlot are scheduled states too.
        if state.name in ("Scheduled", "AwaitingRetry") and state.message != RESTARTED
    ]
    return sum(state.is_crashed() for state in ordered[asked[-1] if asked else 0 :])


def _publish(run: Run) -> None:
    """The page of the flow run; what computed nothing has none. A run that succeeded does not fail for it."""
    if run.nothing_new:
        return
    try:
        if url := os.environ.get("PREFECT_API_URL"):
            check_reachable(url)  # Prefect's client alone would try for half a minute
        publish(run)
    except Exception as error:  # noqa: BLE001 - the numbers are safe; `selftrain report` shows more
        log.warning("the page about %s could not be sent to Prefect: %s", run.id, error)


def _tell_champion(run: Run) -> None:
    """An event that automations may react to: a notification, a deployment of the model."""
    name = run.info["name"]
    emit_event(
        CHAMPION,
        resource={"prefect.resource.id": f"selftrain.model.{name}", "prefect.resource.name": name},
        payload={"model": name, "verdict": run.info["champion"], "run": run.id},
    )
