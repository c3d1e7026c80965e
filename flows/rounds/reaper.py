"""After a crash, the states tell the truth: dead runs are crashed in our records, in Prefect and in MLflow."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from selftrain.ssl_tasks.store.runs import Run, alive, all_runs, owner

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

log = logging.getLogger("selftrain")
OVER = ("done", "failed", "interrupted", "crashed")
FLOWS = ("self-training", "compare")  # whose runs are marked with their process


def mend_dead_runs(workspace: Path) -> None:
    """Corrects the records of runs whose process died; the next run resumes at their checkpoints."""
    for run in all_runs(workspace):
        if run.mend():
            log.info(
                "the process of run %s had died; its finished stages are reused and its checkpoints resumed", run.id
            )


def tell_prefect(workspace: Path, server: str) -> None:
    """Tells Prefect how those runs ended of which it did not hear: their process died, or the server was away.

    `server` is the address of the user's server, empty for the API of the workspace. Each run is told of once.
    """
    from prefect.client.orchestration import get_client

    # Of attempts at one flow run, the newest tells how it stands.
    latest = {run.info.get("prefect_flow_run"): run for run in all_runs(workspace)}
    silent = [run for run in latest.values() if _is_silent(run.info, server)]
    with get_client(sync_client=True) as client:
        for run in silent:
            _tell(client, run, server)
            run.update(prefect_told=True)
        _end_orphans(client)


def process_tag() -> str:
    """Marks a flow run with its process: of one that died before it had a record, nothing else is known."""
    return "process:" + json.dumps(owner())


def _end_orphans(client: "SyncPrefectClient") -> None:
    """Flow runs that say they run, and whose process on this host is gone."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState
    from prefect.client.schemas.filters import FlowRunFilterStateType as OfType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    unended = FlowRunFilterState(type=OfType(any_=[StateType.PENDING, StateType.RUNNING, StateType.PAUSED]))
    ours = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    for flow_run in client.read_flow_runs(flow_filter=ours, flow_run_filter=FlowRunFilter(state=unended)):
        marks = [json.loads(tag.removeprefix("process:")) for tag in flow_run.tags if tag.startswith("process:")]
        if marks and not alive(marks[0]):
            died: State[None] = Crashed(message="its process died and left no record; run it again")
            _end(client, flow_run, died, died)


def _is_silent(info: dict[str, Any], server: str) -> bool:
    asked = info.get("prefect_flow_run") and info.get("prefect_server", "") == server
    return bool(asked) and info["state"] in OVER and not info.get("prefect_told")


def _tell(client: "SyncPrefectClient", run: Run, server: str) -> None:
    """Ends a run's flow run, and the task runs that it left open."""
    from prefect.exceptions import ObjectNotFound

    number = UUID(run.info["prefect_flow_run"])
    try:
        flow_run = client.read_flow_run(number)
    except ObjectNotFound:
        log.debug("Prefect does not know the flow run of %s", run.id)
        return
    if flow_run.deployment_id is not None and server:  # a server's workers and automations look after their own
        return
    _end(client, flow_run, _ending(run), _ending(run, task=True))


def _end(client: "SyncPrefectClient", flow_run: "FlowRun", state: "State[None]", of_tasks: "State[None]") -> None:
    """Sets the state of a flow run, and of its task runs, where they have not ended."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))):
        if task_run.state is None or not task_run.state.is_final():
            client.set_task_run_state(task_run.id, of_tasks, force=True)
    if flow_run.state is None or not flow_run.state.is_final():
        client.set_flow_run_state(flow_run.id, state, force=True)


def _ending(run: Run, task: bool = False) -> "State[None]":
    """Returns the end of a run as one of Prefect's states."""
    from prefect.states import Completed, Crashed, Failed

    info = run.info
    match info["state"]:
        case "done":
            return Completed(message="" if task else info["stopped"])
        case "failed" if not task:
            return Failed(message=info["stopped"])
        case _:
            return Crashed(message="its process died; run it again to resume")
