"""A CSV of some rows of a pseudo-label table, because MLflow shows no Parquet."""

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.csv_text import frame_text

ROWS = 1_000
TABLES = {  # the table of a stage (of several shards the first), and the columns that a person reads
    "predict": ("shards/part-00000.parquet", ["sample_id", "label", "confidence", "margin", "entropy", "error"]),
    "select": ("selection.parquet", ["sample_id", "label", "confidence", "copies", "source"]),
}


def preview_csv(artifact: Artifact, rows: int = ROWS) -> str | None:
    """At most `rows` rows, alike many of each class, most confident first; None of a stage that makes no table."""
    name, columns = TABLES.get(artifact.stage, ("", []))
    if not name or not artifact.file(name).is_file():
        return None
    import pandas as pd  # MLflow imports it anyway, and without garbage collection

    table = pd.read_parquet(artifact.file(name), columns=columns)
    if len(table) > rows:
        quota = max(1, rows // max(1, table["label"].nunique(dropna=False)))
        table = table.sort_values(["confidence", "sample_id"], ascending=[False, True], kind="stable")
        table = table.groupby("label", dropna=False, sort=False).head(quota).head(rows)
    return frame_text(table.sort_values(["label", "confidence"], ascending=[True, False], kind="stable"))
