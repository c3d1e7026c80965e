"""The pipeline as a Prefect flow."""

import contextvars
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.conductor import Conductor
from flows.environment import workspace_folder
from flows.pipeline import run_pipeline
from flows.tasks import as_task
from ssl_tasks.config import RunConfig
from ssl_tasks.execute import Outcome, Request


@flow(name="self-training", flow_run_name="{config.name}", persist_result=False, validate_parameters=True)
def self_training_flow(config: RunConfig, workspace: Path | None = None, force: tuple[str, ...] = ()) -> dict[str, Any]:
    """Teacher → pseudo-labels → student, round by round, on the data of `config`.

    Args:
        config: the recipe; the form edits it, a YAML file is its home
        workspace: the folder of the store, the tracking and the runs
        force: names of stages to compute anew
    """
    folder = workspace_folder(workspace)
    run = run_pipeline(config, folder, frozenset(force), prepare=_within_prefect)
    return {"run": run.id, **run.summary}


def _within_prefect(conductor: Conductor) -> None:
    """Every stage becomes a task of the flow run that we are in."""
    context = contextvars.copy_context()
    retries = conductor.config.runtime.retries
    conductor.run_record.update(prefect_flow_run=str(flow_run.get_id() or ""))

    def around(request: Request, round_number: int, answer: Callable[[], Outcome]) -> Outcome:
        # Stages that run at the same time do so in threads, which must find the flow run too.
        return context.copy().run(as_task, request, round_number, answer, retries)

    conductor.around = around
