"""MLflow stores absolute paths and never changes them: when a workspace moves, its database is told."""

import json
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
            rows = connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
            moved = [(_moved(text, before, after), row) for row, text in rows]
            new = [(text, row) for (text, row), (_, old) in zip(moved, rows, strict=True) if text != old]
            connection.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", new)
            changed += len(new)
    connection.close()
    return changed


def _moved(text: str, before: Path, after: Path) -> str:
    """A path or URI that begins in `before`, in `after`; the source of a data set is JSON with such values."""
    for old, new in ((f"{before.as_uri()}/", f"{after.as_uri()}/"), (f"{before}/", f"{after}/")):
        if text.startswith(old):
            return new + text.removeprefix(old)
    if not text.startswith("{"):
        return text
    try:
        source = json.loads(text)
    except ValueError:
        return text
    moved = {name: _moved(value, before, after) if isinstance(value, str) else value for name, value in source.items()}
    return text if moved == source else json.dumps(moved)
