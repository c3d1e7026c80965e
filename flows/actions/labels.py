"""Pseudo-labels of a run as tables, and people's corrections of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.ssl_tasks.errors import NotFound
from selftrain.ssl_tasks.store.artifacts import file_lock
from selftrain.ssl_tasks.store.runs import Run, corrections_path, tables_folder

if TYPE_CHECKING:
    from selftrain.ssl_tasks.pseudo_labels.looking.corrections import Applied
    from selftrain.ssl_tasks.pseudo_labels.looking.views import RunTables


def tables_of(run: Run) -> "RunTables":
    """The tables of a run's rounds, for `selftrain.ssl_tasks.pseudo_labels.looking.inspection` and `sql`."""
    from selftrain.ssl_tasks.pseudo_labels.looking.views import RoundTables, RunTables

    if run.dataset is None:
        raise NotFound(f"run {run.id} has no data set yet; `selftrain status {run.id}` says how it stands")
    rounds = [
        RoundTables(one.round, tables_folder(one.predictions), tables_folder(one.selection) if one.selection else None)
        for one in run.rounds()
        if one.predictions is not None
    ]
    return RunTables(tables_folder(run.dataset), rounds)


def apply_corrections(run: Run, corrections: Path) -> "Applied":
    """Adds people's corrections for all later rounds and runs of this run's name; returns what is in force now.

    They are validated against the data first: nothing is written where a row cannot be used.
    """
    from selftrain.ssl_tasks.pseudo_labels.looking.corrections import add_corrections

    if run.dataset is None:
        raise NotFound(f"run {run.id} has no data set yet, so there is nothing to correct")
    path = corrections_path(run.workspace, run.config.name)
    with file_lock(path.with_suffix(".lock")):
        return add_corrections(path, corrections, run.dataset)
