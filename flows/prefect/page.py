"""Adds to Prefect's page of a run: the rounds as a table, and the best model's lineage as a tree.

Prefect's second UI draws Mermaid diagrams, its first one shows their text; both can show the tree.
"""

import os
import re
from collections.abc import Sequence
from textwrap import indent

from prefect.artifacts import create_markdown_artifact

from selftrain.flows.tables import share
from selftrain.ssl_tasks.store.artifacts import Store
from selftrain.ssl_tasks.store.runs import Run
from selftrain.ssl_tasks.tracking.lineage import as_mermaid, as_tree
from selftrain.ssl_tasks.tracking.spool import without_password
from selftrain.ssl_tasks.tracking.trace import store_lineage

HEAD = ("round", "model", "labels", "pseudo-labels", "pseudo-label accuracy", "validation", "test", "decision")


def publish(run: Run) -> None:
    """Publishes an artifact of the current flow run; Prefect lists the newest of a name under Artifacts."""
    key = re.sub(r"[^a-z0-9]+", "-", run.info["name"].lower()).strip("-")
    create_markdown_artifact(as_markdown(run), key=f"{key}-rounds", description=f"rounds and lineage of {run.id}")


def as_markdown(run: Run) -> str:
    """Returns the run's summary as Markdown."""
    summary = run.summary
    lines = [f"**{run.id}** · {_plain(summary['stopped'])}", "", _row(HEAD), _row(["---"] * len(HEAD))]
    for line in summary["rounds"]:
        mark = " ← best" if line["round"] == summary["best_round"] else ""
        accepted = "" if line["selected"] is None else f"{line['selected']:,}"
        shares = [share(line[name]) for name in ("pseudo_label_precision", "validation_accuracy", "test_accuracy")]
        name = "teacher" if line["round"] == 0 else str(line["round"])
        lines.append(_row([name + mark, line["model"], line["labeled"], accepted, *shares, line["decision"]]))
    if (server := without_password(os.environ.get("MLFLOW_TRACKING_URI", ""))).startswith("http"):
        lines += ["", f"MLflow: {server}, run `{run.id}` of the experiment `selftrain`"]
    lines += ["", f"Look further on the worker: `selftrain report {run.id}`, `selftrain labels {run.id}`"]
    if (best := run.rounds()[summary["best_round"]].model) is not None:
        names = {stage.key: stage.name for stage in run.stages()}
        lineage = store_lineage(Store(run.workspace / "store"), best, names)
        tree = indent(as_tree(lineage), "    ")  # indented, because a name could end a fenced block
        lines += ["", "### Lineage of the best model", "", tree, "", "### The lineage as a diagram", ""]
        lines += ["```mermaid", as_mermaid(lineage) + "```"]
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(_plain(str(cell)) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Escapes Markdown in names, which come from recipes and data."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))
