"""What Prefect's page of a run shows beside its states: the rounds as a table, the best model's lineage as a tree.

Prefect's second UI draws Mermaid diagrams, its first one shows their text: the tree is what both can show.
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

HEAD = ("round", "model", "labels", "invented", "their precision", "validation", "test", "decision")


def publish(run: Run) -> None:
    """An artifact of the flow run that we are in; the newest of a name is found under Artifacts."""
    key = re.sub(r"[^a-z0-9]+", "-", run.info["name"].lower()).strip("-")
    create_markdown_artifact(as_markdown(run), key=f"{key}-rounds", description=f"rounds and lineage of {run.id}")


def as_markdown(run: Run) -> str:
    """The run's summary for a person."""
    summary = run.summary
    lines = [f"**{run.id}** · {_plain(summary['stopped'])}", "", _row(HEAD), _row(["---"] * len(HEAD))]
    for line in summary["rounds"]:
        mark = " ← best" if line["round"] == summary["best_round"] else ""
        invented = "" if line["selected"] is None else f"{line['selected']:,}"
        shares = [share(line[name]) for name in ("pseudo_label_precision", "validation_accuracy", "test_accuracy")]
        name = "teacher" if line["round"] == 0 else str(line["round"])
        lines.append(_row([name + mark, line["model"], line["labeled"], invented, *shares, line["decision"]]))
    if (server := without_password(os.environ.get("MLFLOW_TRACKING_URI", ""))).startswith("http"):
        lines += ["", f"MLflow: {server}, run `{run.id}` of the experiment `selftrain`"]
    lines += ["", f"Look further on the worker: `selftrain report {run.id}`, `selftrain labels {run.id}`"]
    if (best := run.rounds()[summary["best_round"]].model) is not None:
        names = {stage.key: stage.name for stage in run.stages()}
        lineage = store_lineage(Store(run.workspace / "store"), best, names)
        tree = indent(as_tree(lineage), "    ")  # not fenced: no name in it can end the block
        lines += ["", "### What the best model rests on", "", tree, "", "### The same as a diagram", ""]
        lines += ["```mermaid", as_mermaid(lineage) + "```"]
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(_plain(str(cell)) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Names come from recipes and data: no text of theirs is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))
