"""Reads a run: its pseudo-labels, tables, lineage, report and data."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.flows.environment import Workspace, set_environment, workspace_folder
from selftrain.ssl_tasks.errors import NotFound
from selftrain.ssl_tasks.settings.recipe import Recipe, load_recipe
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.locks import file_lock
from selftrain.ssl_tasks.store.runs import Run, corrections_path, find_run, tables_folder

if TYPE_CHECKING:
    import pandas as pd

    from selftrain.flows.rounds.planning import Explanation
    from selftrain.ssl_tasks.data.survey import DataReport
    from selftrain.ssl_tasks.pseudo_labels.corrections import Applied
    from selftrain.ssl_tasks.pseudo_labels.views import RunTables
    from selftrain.ssl_tasks.tracking.lineage import Graph
    from selftrain.ssl_tasks.tracking.trace import Damage, SampleLineage
    from selftrain.ssl_tasks.tracking.tracker import Report

TIMEOUT = 600.0  # seconds for a query


def labels(
    run: str = "last",
    round: int | None = None,
    class_name: str | None = None,
    selected: bool | None = None,
    flipped: bool | None = None,
    min_confidence: float | None = None,
    sort: str = "-confidence",
    limit: int = 50,
    workspace: Workspace = None,
) -> "pd.DataFrame":
    """Return the pseudo-labels of one round (default: the last), one row per image, filtered and sorted.

    `flipped` keeps images whose predicted class changed since the previous round. `sort` is confidence, margin,
    agreement or distance, with `-` for descending.
    """
    from selftrain.ssl_tasks.pseudo_labels.inspection import LabelFilter, labels_table

    wanted = LabelFilter(round, class_name, selected, min_confidence, flipped, sort=sort, limit=limit)
    return labels_table(tables_of(find_run(workspace_folder(workspace), run)), wanted)


def review(run: str = "last", round: int | None = None, limit: int = 50, workspace: Workspace = None) -> "pd.DataFrame":
    """Return the images of a round that are most worth a review, the most useful first."""
    from selftrain.ssl_tasks.pseudo_labels.inspection import review_queue

    return review_queue(tables_of(find_run(workspace_folder(workspace), run)), round, limit)


def differences(run: str, first: int, second: int, workspace: Workspace = None) -> "pd.DataFrame":
    """Return the images whose predicted class or selection differs between two rounds of a run."""
    from selftrain.ssl_tasks.pseudo_labels.inspection import round_differences

    return round_differences(tables_of(find_run(workspace_folder(workspace), run)), first, second)


def apply_corrections(run: str, corrections: str | Path, workspace: Workspace = None) -> "Applied":
    """Add corrections to those of a run's name; all later rounds and runs of that name use them.

    They are validated against the data first. If a row cannot be used, nothing is written.
    """
    from selftrain.ssl_tasks.pseudo_labels.corrections import add_corrections

    found = find_run(workspace_folder(workspace), run)
    if found.dataset is None:
        raise NotFound(
            f"run {found.id} has no data set yet, so there are no labels to correct. See: selftrain status {found.id}"
        )
    path = corrections_path(found.workspace, found.config.name)
    with file_lock(path.with_suffix(".lock")):
        return add_corrections(path, Path(corrections), found.dataset)


def sql(run: str, query: str, timeout: float = TIMEOUT, workspace: Workspace = None) -> "pd.DataFrame":
    """Query a run with DuckDB: the views are manifest, predictions, selection and rounds, over all rounds.

    The whole result is held in memory. `timeout` is in seconds; 0 sets no limit.
    """
    from selftrain.ssl_tasks.pseudo_labels.views import sql as ask

    return ask(tables_of(find_run(workspace_folder(workspace), run)), query, timeout=timeout or None)


def tables_of(run: Run) -> "RunTables":
    """Returns the tables of a run's rounds, as the functions of `pseudo_labels` take them."""
    from selftrain.ssl_tasks.pseudo_labels.views import RoundTables, RunTables

    if run.dataset is None:
        raise NotFound(f"run {run.id} has no data set yet. See: selftrain status {run.id}")
    rounds = [
        RoundTables(one.round, tables_folder(one.predictions), tables_folder(one.selection) if one.selection else None)
        for one in run.rounds()
        if one.predictions is not None
    ]
    return RunTables(tables_folder(run.dataset), rounds)


@dataclass(frozen=True)
class Lineage:
    """The graph of artifacts behind a run or a model; damages are files that differ from their digests."""

    graph: "Graph"
    damages: "list[Damage]" = field(default_factory=list)


def lineage(
    what: str, run: str = "last", verify: bool = False, workspace: Workspace = None
) -> "Lineage | SampleLineage":
    """Trace the origin of a run, a stage of `run`, a digest, or a sample id.

    With `verify`, every file is checked against its digest.
    """
    from selftrain.ssl_tasks.tracking.trace import sample_lineage, store_lineage
    from selftrain.ssl_tasks.tracking.trace import verify as damages_of

    folder = workspace_folder(workspace)
    store = Store(folder / "store")
    found = _artifact(folder, store, what, run)
    if found is None:
        return sample_lineage(find_run(folder, run), what)
    graph = store_lineage(store, *found)
    return Lineage(graph, damages_of(store, graph) if verify else [])


def _artifact(folder: Path, store: Store, what: str, run_name: str) -> tuple[Artifact, dict[str, str]] | None:
    """Returns the artifact that `what` names, and the stage names of its run; None if `what` must be a sample id."""
    from selftrain.ssl_tasks.tracking.trace import find_artifact

    try:
        run = find_run(folder, what)
        return _last_artifact(run), _names(run)
    except NotFound:
        pass
    run = find_run(folder, run_name)
    if (artifact := run.artifact(what)) is not None:
        return artifact, _names(run)
    try:
        return find_artifact(store, what), _names(run)
    except NotFound:
        return None


def _last_artifact(run: Run) -> Artifact:
    for one in reversed(run.rounds()):
        for artifact in (one.gate, one.evaluation, one.model, one.selection, one.predictions):
            if artifact is not None:
                return artifact
    if run.dataset is not None:
        return run.dataset
    raise NotFound(f"run {run.id} has no artifacts yet. See: selftrain status {run.id}")


def _names(run: Run) -> dict[str, str]:
    return {stage.key: stage.name for stage in run.stages() if stage.key}


def report(run: str = "last", output: str | Path | None = None, workspace: Workspace = None) -> Path:
    """Write one self-contained HTML page about a run; returns its path (default: report.html in the run's folder)."""
    from selftrain.flows.rounds.pipeline import REPORT
    from selftrain.ssl_tasks.report.page import write_report
    from selftrain.ssl_tasks.tracking.lineage import run_links

    found = find_run(workspace_folder(workspace), run)
    found.mend()  # so that the page of a run whose process died does not say that it is running
    return write_report(found, Path(output) if output is not None else found.path / REPORT, run_links(found))


def explain(run: str, stage: str, workspace: Workspace = None) -> "Explanation":
    """Explain why a stage of a run was computed or reused: which parts of its key differ."""
    from selftrain.flows.rounds.planning import explain as explain_stage

    return explain_stage(find_run(workspace_folder(workspace), run), stage)


def config(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Return the resolved and validated recipe, with the origin of each value."""
    return load_recipe(recipe, overrides)


def data(recipe: str | Path, overrides: Iterable[str] = (), workspace: Workspace = None) -> "DataReport":
    """Check every image as a run would: counts, unreadable images, duplicates, leaks into validation and test."""
    from selftrain.ssl_tasks.data.survey import check_data

    resolved = load_recipe(recipe, overrides).config
    return check_data(resolved.data, workspace_folder(workspace) / "cache", resolved.runtime)


def sync(to: str | None = None, workspace: Workspace = None) -> "Report":
    """Send records to MLflow that could not be sent earlier; safe to repeat."""
    from selftrain.ssl_tasks.tracking.tracker import sync as send

    folder = workspace_folder(workspace)
    set_environment(folder)
    return send(folder, to)
