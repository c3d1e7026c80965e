"""The pipeline as a Prefect flow."""

import contextvars
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from flows.conductor import Conductor
from flows.environment import set_environment, workspace_folder
from flows.events import CHAMPION, NOTHING_NEW, RESTARTED
from flows.pipeline import run_pipeline
from flows.prefect_page import publish
from flows.tasks import as_task, gpu_slots
from ssl_tasks.config import RunConfig
from ssl_tasks.errors import SelftrainError
from ssl_tasks.execute import Outcome, Request
from ssl_tasks.runs import Run

log = logging.getLogger("selftrain")


@flow(name="self-training", flow_run_name="{config.name}", persist_result=False, validate_parameters=True)
def self_training_flow(config: RunConfig, workspace: Path | None = None, force: tuple[str, ...] = ()) -> State[Any]:
    """Teacher → pseudo-labels → student, round by round, on the data of `config`.

    Args:
        config: the recipe; the form edits it, a YAML file is its home
        workspace: the folder of the store, the tracking and the runs
        force: names of stages to compute anew
    """
    folder = workspace_folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    set_environment(folder)
    if deployment.get_id():
        _refuse_endless_crashes(config.runtime.restarts)
    # In a deployment a SIGTERM is a person's cancelling or a crash; Prefect knows, and its own handler tells it.
    own_signals = not deployment.get_id()
    run = run_pipeline(config, folder, frozenset(force), prepare=_within_prefect, own_signals=own_signals)
    _publish(run)
    if run.info.get("champion"):
        _tell_champion(run)
    answer = {"run": run.id, **run.summary}
    if run.nothing_new and flow_run.run_count < 2:  # a run that was started again met what it had made itself
        return Completed(name=NOTHING_NEW, message="nothing new: every stage was answered before", data=answer)
    return Completed(message=run.summary["stopped"], data=answer)


def _within_prefect(conductor: Conductor) -> None:
    """Every stage becomes a task of the flow run that we are in."""
    context = contextvars.copy_context()
    runtime = conductor.config.runtime
    conductor.run_record.update(prefect_flow_run=str(flow_run.get_id() or ""))

    def around(request: Request, round_number: int, answer: Callable[[], Outcome]) -> Outcome:
        # Stages that run at the same time do so in threads, which must find the flow run too.
        return context.copy().run(as_task, request, round_number, answer, runtime.retries)

    conductor.around = around
    conductor.slots = lambda request: gpu_slots(request.stage, runtime)


def _refuse_endless_crashes(restarts: int) -> None:
    """Ends a run that crashed again and again: whatever kills it would kill it for ever."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(flow_run.get_id()))
    if (crashes := crashes_in_a_row(states)) > restarts:
        raise SelftrainError(
            f"crashed {crashes} times in a row, and runtime.restarts is {restarts}: find out why, then `Retry` it"
        )


def crashes_in_a_row(states: Sequence[State[Any]]) -> int:
    """How often a run crashed since a person or a schedule asked for it; from all states that it has been in."""
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
        publish(run)
    except Exception:  # the numbers are safe; `selftrain report` shows more
        log.exception("Prefect has no page about %s", run.id)


def _tell_champion(run: Run) -> None:
    """An event that automations may react to: a notification, a deployment of the model."""
    name = run.info["name"]
    emit_event(
        CHAMPION,
        resource={"prefect.resource.id": f"selftrain.model.{name}", "prefect.resource.name": name},
        payload={"model": name, "verdict": run.info["champion"], "run": run.id},
    )
