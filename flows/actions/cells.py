"""The cells of a comparison, each a run: one after the other here, or side by side on the machines of a Ray cluster."""

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

from selftrain.flows.actions.verbs import run
from selftrain.flows.environment import set_environment
from selftrain.ssl_tasks.errors import ConfigError, SelftrainError
from selftrain.ssl_tasks.execution.cluster import spread
from selftrain.ssl_tasks.settings.recipe import Recipe
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run, find_run
from selftrain.ssl_tasks.tracking.spool import without_password

TOLD = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")  # to Ray's workers; a server's password is in their environment
PASSWORD = "PREFECT_API_AUTH_STRING"  # told where the API is our own: it is made anew for each start


def run_cells(cells: Sequence[Recipe], workspace: Path, prefect: bool) -> list[Run]:
    """The runs, in the order of their recipes; what was answered before is reused."""
    workspace.mkdir(parents=True, exist_ok=True)
    set_environment(workspace)
    from selftrain.flows.prefect.server import prefect_api

    # One API for all cells: a run starts none of its own where one is there.
    with prefect_api(workspace) if prefect else nullcontext():
        if cells[0].config.runtime.task_runner == "ray":
            return by_ray(cells, workspace, prefect)
        return [run(cell, workspace=workspace, prefect=prefect) for cell in cells]


def by_ray(cells: Sequence[Recipe], workspace: Path, prefect: bool) -> list[Run]:
    """Every cell as a task of the cluster, which shares the workspace with us."""
    from selftrain.flows.prefect.server import server_in_use

    mark = workspace / f"seen-{uuid4().hex}"
    told = TOLD if server_in_use(workspace) else (*TOLD, PASSWORD)
    shared = {
        "workspace": str(workspace.absolute()),
        "mark": mark.name,
        "prefect": prefect,
        "parent": flow_run_of_ours() if prefect else "",
        "environment": {name: os.environ[name] for name in told if name in os.environ},
    }
    asked = [(number, cell.config.model_dump(mode="json")) for number, cell in enumerate(cells)]
    mark.touch()
    try:
        ids = dict(spread("selftrain.flows.actions.cells:run_cell", shared, asked, cells[0].config.runtime))
    finally:
        mark.unlink()
    return [find_run(workspace, ids[number]) for number in range(len(cells))]


def run_cell(shared: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """One cell, on the Ray worker that we are; returns the run's id."""
    workspace = Path(shared["workspace"])
    if not (workspace / shared["mark"]).exists():
        raise ConfigError(
            f"{workspace} on {socket.gethostname()} is not the workspace of this comparison. Its cells need one "
            "workspace: put it on a disk that all machines have under the same path"
        )
    os.environ.update(shared["environment"])
    set_environment(workspace)
    if shared["prefect"]:
        refuse_unreachable(os.environ["PREFECT_API_URL"])
    cell = Recipe(RunConfig.model_validate(config), workspace, {})
    with within(shared["parent"]):
        return run(cell, workspace=workspace, prefect=shared["prefect"]).id


def flow_run_of_ours() -> str:
    """The number of the flow run that we are in, empty outside of any."""
    from prefect.runtime import flow_run

    return str(flow_run.get_id() or "")


def within(flow_run: str) -> AbstractContextManager[None]:
    """Runs of this block are children of that flow run, if there is one."""
    if not flow_run:
        return nullcontext()
    from selftrain.flows.prefect.flow import child_of

    return child_of(flow_run)


def refuse_unreachable(url: str) -> None:
    """Each worker would start a Prefect API of its own, and the runs would be told to nobody."""
    from selftrain.flows.prefect.server import check_reachable

    try:
        check_reachable(url)
    except SelftrainError as error:
        raise ConfigError(
            f"Ray's worker on {socket.gethostname()} cannot reach the Prefect API at {without_password(url)}. Set "
            "PREFECT_API_URL to a server that all machines reach, or leave Prefect out with --no-prefect"
        ) from error
