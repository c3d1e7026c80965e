"""A workspace that moves: every path of ours in MLflow's database is rewritten once, and nothing else is."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from selftrain.ssl_tasks.tracking.client import relocate_database

OLD = Path("/data/my work")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """MLflow's tables, as far as they hold paths."""
    path = tmp_path / "mlflow.db"
    source = json.dumps({"uri": f"{OLD.as_uri()}/store/x", "note": f"was {OLD}/store"}, sort_keys=True)
    rows = {
        ("experiments", "artifact_location"): [f"{OLD.as_uri()}/mlartifacts", "s3://bucket/data/my work/1", None],
        ("runs", "artifact_uri"): [f"{OLD}/mlartifacts/1", f"/other{OLD}/mlartifacts/1"],
        ("datasets", "dataset_source"): [source, "no JSON", json.dumps("text"), json.dumps({"uri": 1})],
    }
    with closing(sqlite3.connect(path)) as connection, connection:
        for (table, column), values in rows.items():
            connection.execute(f"CREATE TABLE {table} ({column} TEXT)")
            connection.executemany(f"INSERT INTO {table} VALUES (?)", [(value,) for value in values])
    connection.close()
    return path


def column(database: Path, table: str) -> list[str | None]:
    with closing(sqlite3.connect(database)) as connection, connection:
        found = [value for (value,) in connection.execute(f"SELECT * FROM {table} ORDER BY rowid")]
    connection.close()
    return found


@pytest.mark.parametrize("new", ["/mnt/data/my work", "/data/my work/data/my work", "/elsewhere"])
def test_a_path_is_rewritten_where_it_begins_and_once(database: Path, new: str) -> None:
    after = Path(new)
    before = {table: column(database, table) for table in ("experiments", "runs", "datasets")}
    assert relocate_database(database, OLD, after) == 3
    experiments, runs, datasets = (column(database, table) for table in before)
    assert experiments == [f"{after.as_uri()}/mlartifacts", *before["experiments"][1:]]
    assert runs == [f"{after}/mlartifacts/1", before["runs"][1]]
    assert json.loads(str(datasets[0])) == {"uri": f"{after.as_uri()}/store/x", "note": f"was {OLD}/store"}
    assert datasets[1:] == before["datasets"][1:]


def test_there_and_back_is_as_before(database: Path) -> None:
    before = column(database, "experiments"), column(database, "datasets")
    below = Path("/mnt/data/my work")
    relocate_database(database, OLD, below)
    relocate_database(database, below, OLD)
    assert (column(database, "experiments"), column(database, "datasets")) == before
