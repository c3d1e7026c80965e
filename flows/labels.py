"""Pseudo-labels of a run as tables, and people's corrections of them."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_tasks.artifacts import file_lock, write_atomically
from ssl_tasks.errors import NotFound
from ssl_tasks.runs import Run, corrections_path, tables_folder

if TYPE_CHECKING:
    from ssl_tasks.pseudo_labels.views import RunTables


def tables_of(run: Run) -> "RunTables":
    """The tables of a run's rounds, for `ssl_tasks.pseudo_labels.inspection` and `sql`."""
    from ssl_tasks.pseudo_labels.views import RoundTables, RunTables

    if run.dataset is None:
        raise NotFound(f"run {run.id} has no data set yet; `selftrain status {run.id}` says how it stands")
    rounds = [
        RoundTables(one.round, tables_folder(one.predictions), tables_folder(one.selection) if one.selection else None)
        for one in run.rounds()
        if one.predictions is not None
    ]
    return RunTables(tables_folder(run.dataset), rounds)


def apply_corrections(run: Run, corrections: Path) -> int:
    """Adds people's corrections for all later rounds and runs of this run's name; returns how many there are now.

    They are validated against the data first: nothing is written where a row cannot be used.
    """
    from ssl_tasks.pseudo_labels.corrections import validated_rows

    if run.dataset is None:
        raise NotFound(f"run {run.id} has no data set yet, so there is nothing to correct")
    path = corrections_path(run.workspace, run.config.name)
    with file_lock(path.with_suffix(".lock")):
        rows = dict(_read(path)) if path.exists() else {}
        rows.update(validated_rows(corrections, run.dataset))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["sample_id", "label"])
        writer.writerows(sorted(rows.items()))
        write_atomically(path, text.getvalue())
    return len(rows)


def _read(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["sample_id"], row["label"]) for row in csv.DictReader(file)]
