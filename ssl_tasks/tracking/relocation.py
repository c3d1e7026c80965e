"""MLflow stores absolute paths and never changes them: when a workspace moves, its database is told."""

import sqlite3
from pathlib import Path

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("datasets", "dataset_source"),
)


def relocate_database(database: Path, before: Path, after: Path) -> int:
    """Rewrites paths under the folder `before` to `after`, all or none; returns how many."""
    changed = 0
    with sqlite3.connect(database, timeout=60) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in COLUMNS:
            if table not in tables:  # half of a first set-up that was killed
                continue
            for old, new in ((f"{before.as_uri()}/", f"{after.as_uri()}/"), (f"{before}/", f"{after}/")):
                statement = f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?) > 0"
                changed += connection.execute(statement, (old, new, old)).rowcount
    connection.close()
    return changed
