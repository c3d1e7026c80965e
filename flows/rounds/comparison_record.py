"""Writes a comparison as a table, Markdown, CSV and JSON, and stores its record in the workspace and in MLflow."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from selftrain.flows.environment import Workspace, workspace_folder
from selftrain.flows.tables import printable, seconds, share
from selftrain.ssl_tasks.report.page import Comparison, render_comparison
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.csv_text import frame_text
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.tracker import Tracker

log = logging.getLogger("selftrain")
NAMES = ("run", "round", "method", "labels", "seeds")


def shown_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Returns the table's rows as texts for a person."""
    return [shown_row(row) for row in comparison.rows()]


def shown_row(row: dict[str, Any]) -> dict[str, str]:
    """Returns a row as texts for a person: accuracies with interval or ± std, the difference in points."""
    shown = {name: str(row[name]) for name in NAMES if name in row}
    for split in ("validation", "test"):
        text = share(row[split])
        if row.get(f"{split}_low") is not None:
            text += f" ({100 * row[f'{split}_low']:.1f} … {100 * row[f'{split}_high']:.1f})"
        if row.get(f"{split}_std") is not None:
            text += f" ± {100 * row[f'{split}_std']:.1f}"
        shown[split] = text
    points = ""
    if row["difference"] is not None:
        points = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} … {100 * row['high']:+.1f})"
    shown |= {"difference to the first, points": points, "McNemar p": "" if row["p"] is None else f"{row['p']:.3g}"}
    return {**shown, "time": seconds(row["seconds"]), **({"note": row["note"] or ""} if "note" in row else {})}


def as_markdown(rows: list[dict[str, str]]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def as_json(comparison: Comparison) -> str:
    """Returns the table as a JSON list of rows."""
    return comparison.table.to_json(orient="records")


def record(comparison: Comparison, workspace: Workspace = None) -> Path:
    """Stores a comparison: a folder with the table and the page, and a run in MLflow with the same files.

    Both are named by a digest of the result, so that the same comparison is stored once.
    """
    folder = workspace_folder(workspace)
    text = as_json(comparison)
    digest = hashlib.sha256(json.dumps([comparison.asked, text]).encode()).hexdigest()
    place = folder / "comparisons" / digest[:12]
    place.mkdir(parents=True, exist_ok=True)
    files = {
        "comparison.json": text + "\n",
        "comparison.csv": frame_text(comparison.table),
        "comparison.md": as_markdown(shown_rows(comparison)),
        "comparison.html": render_comparison(comparison),
    }
    for name, content in files.items():
        write_atomically(place / name, content)
    tracker = Tracker(default_uri(folder), folder)
    tags = {"selftrain.comparison": digest}
    run = tracker.start_run(f"compare {comparison.title}", comparison.asked, tags=tags, local=f"compare-{digest}")
    for name in files:
        tracker.log_file(run, place / name)
    tracker.finish_run(run)
    sent = tracker.close()
    if sent.left:
        log.warning("%d records are not yet in MLflow (%s). Send them later: selftrain sync", sent.left, sent.reason)
    return place
