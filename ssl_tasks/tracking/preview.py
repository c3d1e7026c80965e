"""A CSV of some rows of a pseudo-label table, because MLflow shows no Parquet."""

from pathlib import Path

import pandas as pd

from ssl_tasks.artifacts import Artifact

ROWS = 1_000
TABLES = {"predict": "shards/part-00000.parquet", "select": "selection.parquet"}
COLUMNS = ("sample_id", "label", "confidence", "margin", "entropy", "view_agreement", "copies", "source", "error")


def preview_csv(artifact: Artifact, rows: int = ROWS) -> str | None:
    """At most `rows` rows, alike many of each class, most confident first; None of a stage that makes no table."""
    path = table_path(artifact)
    if path is None or not path.is_file():
        return None
    table = pd.read_parquet(path)
    table = table[[name for name in COLUMNS if name in table]]
    if len(table) > rows:
        quota = max(1, rows // max(1, table["label"].nunique(dropna=False)))
        table = table.sort_values(["confidence", "sample_id"], ascending=[False, True], kind="stable")
        table = table.groupby("label", dropna=False, sort=False).head(quota).head(rows)
    return table.sort_values(["label", "confidence"], ascending=[True, False], kind="stable").to_csv(index=False)


def table_path(artifact: Artifact) -> Path | None:
    """The table of an artifact (of several shards the first)."""
    name = TABLES.get(artifact.stage)
    return artifact.file(name) if name else None
