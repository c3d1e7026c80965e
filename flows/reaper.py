"""After a crash, the states tell the truth: dead runs are crashed in our records, in Prefect and in MLflow."""

import logging
from pathlib import Path

from ssl_tasks.runs import all_runs

log = logging.getLogger("selftrain")


def mend_dead_runs(workspace: Path) -> None:
    """Sets the records of runs right whose process died; their checkpoints go on with whoever asks next."""
    for run in all_runs(workspace):
        if run.mend():
            log.info("run %s had died; its finished stages are reused, its checkpoints go on", run.id)


def crash_dead_flow_runs(workspace: Path) -> None:
    """Tells Prefect, on the API in use, which of its flow runs died unseen. Once for each run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    for run in all_runs(workspace):
        info = run.info
        if info["state"] != "crashed" or not info.get("prefect_flow_run") or info.get("prefect_told"):
            continue
        with get_client(sync_client=True) as client:
            try:
                state: State[None] = Crashed(message="its process died; run it again to go on")
                client.set_flow_run_state(info["prefect_flow_run"], state, force=True)
            except ObjectNotFound:  # it lived on another server
                log.debug("Prefect does not know the flow run of %s", run.id)
        run.update(prefect_told=True)
