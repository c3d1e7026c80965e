"""The verbs of the command line as functions that return data, for notebooks and programs.

from selftrain.flows.actions.verbs import run, status
finished = run("quickstart", ["seed=1"])
status("last")                              # a pandas DataFrame
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.flows.actions.housekeeping import Cleaned, clean
from selftrain.flows.environment import Workspace, make_workspace, set_environment, workspace_folder
from selftrain.flows.rounds.pipeline import check_paths, mend_dead_runs, run_pipeline, warm_up
from selftrain.flows.rounds.planning import PlannedStage
from selftrain.flows.rounds.planning import plan as plan_stages
from selftrain.ssl_tasks.errors import NotFound, nearest
from selftrain.ssl_tasks.execution.progress import Progress, read_progress
from selftrain.ssl_tasks.execution.startup import uncollected
from selftrain.ssl_tasks.settings.recipe import Recipe, load_recipe, parse_recipe
from selftrain.ssl_tasks.store.artifacts import Store, write_atomically
from selftrain.ssl_tasks.store.runs import Run, StageRecord, all_runs, approval_file, find_run
from selftrain.ssl_tasks.store.stage_names import RoundNames, stage_names

if TYPE_CHECKING:
    import pandas as pd


def run(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] = (),
    name: str | None = None,
    workspace: Workspace = None,
    prefect: bool = True,
    force: Iterable[str] = (),
) -> Run:
    """Run a recipe through all of its rounds; finished stages are reused.

    With `prefect`, the run is a Prefect flow run: on the server of PREFECT_API_URL, or on an API inside this process.
    """
    folder = workspace_folder(workspace)
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides, name)
    check_paths(loaded.config, folder / "cache")
    make_workspace(folder)
    set_environment(folder)
    warm_up(loaded.config, folder, list(force))
    if not prefect:
        return run_pipeline(loaded.config, folder, frozenset(force), written=loaded.written)
    from selftrain.flows.prefect.server import prefect_api, server_in_use

    mend_dead_runs(folder)
    with prefect_api(folder):
        with uncollected():
            from selftrain.flows.prefect.flow import run_as_flow
            from selftrain.flows.prefect.tasks import tell_prefect

        tell_prefect(folder, server_in_use(folder))
        return run_as_flow(loaded.config, folder, tuple(force), loaded.written)


def train(
    recipe: str | Path,
    overrides: Iterable[str] = (),
    name: str | None = None,
    workspace: Workspace = None,
    prefect: bool = True,
) -> Run:
    """Train and evaluate only the teacher of a recipe, without its rounds."""
    return run(load_recipe(recipe, overrides, name, ["rounds=[]"]), workspace=workspace, prefect=prefect)


def rerun(
    run_name: str,
    stage: str | None = None,
    overrides: Iterable[str] = (),
    workspace: Workspace = None,
    prefect: bool = True,
) -> Run:
    """Resume a run and reuse its finished stages; a named `stage` and all that depend on it are recomputed."""
    folder = workspace_folder(workspace)
    before = find_run(folder, run_name)
    recipe = load_recipe(before.path, overrides)
    known = list(stage_names(recipe.config))
    if stage is not None and stage not in known:
        raise NotFound(f"run {before.id} has no stage '{stage}'." + nearest(stage, known))
    force = [] if stage is None else [stage]
    return run(recipe, workspace=folder, prefect=prefect, force=force)


def plan(
    recipe: str | Path, overrides: Iterable[str] = (), workspace: Workspace = None, estimate: bool = False
) -> list[PlannedStage]:
    """Return the stages that a run would reuse and compute, and why, without running it.

    With `estimate`, also the time, memory and disk of each stage that is not reused, measured by a few real steps.
    """
    config, folder = load_recipe(recipe, overrides).config, workspace_folder(workspace)
    planned = plan_stages(config, folder)
    if not estimate:
        return planned
    from selftrain.flows.rounds.estimate import estimated

    return estimated(config, folder, planned)


def stages(run_name: str = "last", workspace: Workspace = None) -> list[StageRecord]:
    """Return the stages of a run; those not yet started are `pending`, and a running one has the time since its
    start."""
    record = find_run(workspace_folder(workspace), run_name)
    record.mend()
    met = [
        replace(stage, seconds=max(0.0, time.time() - stage.started)) if stage.state == "running" else stage
        for stage in record.stages()
    ]
    names = {stage.name for stage in met}
    if record.info["state"] == "done":
        return met
    ahead = [StageRecord(name=name, stage="", state="pending") for name in stage_names(record.config)]
    return met + [stage for stage in ahead if stage.name not in names]


def progress(stage: StageRecord, workspace: Workspace = None) -> Progress | None:
    """Return the progress of a running stage; None if it is not running or has not reported any."""
    if stage.state != "running":
        return None
    attempt = Store(workspace_folder(workspace) / "store").attempt(stage.stage, stage.key)
    return read_progress(attempt / "events.jsonl", stage.started)


def status(run_name: str = "last", workspace: Workspace = None) -> "pd.DataFrame":
    """Return the stages of a run as a table."""
    import pandas as pd

    columns = ["name", "state", "seconds", "key", "digest", "reason", "log"]
    return pd.DataFrame([asdict(stage) for stage in stages(run_name, workspace)])[columns]


def runs(workspace: Workspace = None) -> list[dict[str, Any]]:
    """Return all runs of a workspace, the oldest first. Runs whose process died have the state crashed."""
    found = list(all_runs(workspace_folder(workspace)))
    for one in found:
        one.mend()
    return [one.info for one in found]


def approve(run_name: str = "last", workspace: Workspace = None) -> int:
    """Approve the round that a run waits for, so that it continues; returns the round's number."""
    folder = workspace_folder(workspace)
    record = find_run(folder, run_name)
    waits_for = record.info.get("waits_for")
    if not waits_for:
        raise NotFound(
            f"run {record.id} does not wait for approval; its state is {record.info['state']}. See: "
            f"selftrain status {record.id}"
        )
    selection = record.artifact(RoundNames(waits_for["round"]).select)
    assert selection is not None, "a run waits only after its selection"
    write_atomically(approval_file(folder, selection), f"{record.id} {time.time():.0f}\n")
    return int(waits_for["round"])


__all__ = [
    "Cleaned",
    "approve",
    "clean",
    "parse_recipe",
    "plan",
    "progress",
    "rerun",
    "run",
    "runs",
    "stages",
    "status",
    "train",
]
