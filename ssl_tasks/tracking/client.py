"""Connects to MLflow: checks a server, or sets up the workspace's database once and moves it with the workspace.

MLflow stores absolute paths: when a workspace has moved, `relocate_database` rewrites them.
"""

import contextlib
import json
import logging
import os
import sqlite3
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.startup import uncollected
from selftrain.ssl_tasks.reading import Malformed, read_json
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.locks import file_lock
from selftrain.ssl_tasks.tracking.spool import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
if TYPE_CHECKING:
    from mlflow import MlflowClient


log = logging.getLogger("selftrain")
REQUEST_SECONDS, FIRST_SECONDS = 10, 3
SQLITE = "sqlite:///"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the shipper retries itself, and can be stopped
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",  # for large weights
}


def default_uri(workspace: Path) -> str:
    """Returns the address of the user's server, else of the SQLite database in the workspace; always absolute."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path(workspace).absolute() / 'mlflow.db'}"


def artifact_folder(workspace: Path) -> Path:
    """Returns the folder of runs' files when the workspace has its own database."""
    return Path(workspace).absolute() / "mlartifacts"


def connect(uri: str, workspace: Path) -> "MlflowClient":
    """Returns a connected client. Any number of processes may race to the first connection."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with uncollected():
        if not uri.startswith(("http://", "https://")):
            return _connect_database(uri, Path(workspace).absolute())
        check_server(uri)
        from mlflow import MlflowClient

        return MlflowClient(uri, registry_uri=uri)


def check_server(uri: str) -> None:
    """Raises ConfigError unless an MLflow server of our major version answers; OSError if nothing answers."""
    from mlflow.version import VERSION

    address = without_password(uri).rstrip("/")  # urllib would read the credentials as a part of the host
    try:
        with urllib.request.urlopen(f"{address}/version", timeout=FIRST_SECONDS) as answer:
            found = answer.read(100).decode(errors="replace").strip()
    except HTTPError as error:
        if error.code >= 500:
            raise
        return  # a proxy or a login comes first; the first real request will show it
    if found.split(".")[0] != VERSION.split(".")[0]:
        raise ConfigError(
            f"the MLflow server has version '{found[:20]}', expected {VERSION.split('.')[0]}.x as the client's "
            f"{VERSION}; run a server of that version, or unset MLFLOW_TRACKING_URI to track in the workspace"
        )


def _connect_database(uri: str, workspace: Path) -> "MlflowClient":
    from mlflow import MlflowClient
    from mlflow.version import VERSION

    if not uri.startswith(SQLITE):
        return MlflowClient(uri, registry_uri=uri)
    database = Path(uri.removeprefix(SQLITE))
    ready = database.with_name(database.name + ".ready")
    state = {"version": VERSION, "folder": str(database.parent)}
    if not (database.exists() and _read(ready) == state):
        # MLflow's first set-up fails if processes race, so ours take turns.
        with file_lock(database.with_name(database.name + ".lock")):
            before = _read(ready).get("folder")
            if database.exists() and before and before != state["folder"]:
                relocate_database(database, Path(before), database.parent)
            _make_ready(database)
            write_atomically(ready, json.dumps(state))
    return MlflowClient(uri, registry_uri=uri)


def _make_ready(database: Path) -> None:
    """Creates MLflow's database in a temporary file, because MLflow cannot use one whose set-up was killed.

    An incomplete database from such a kill is moved aside, unless it holds a run.
    """
    from mlflow import MlflowClient

    if database.exists() and not (_rows(database, "runs") or _rows(database, "alembic_version")):
        aside = database.with_name(f"{database.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
        database.rename(aside)
        log.warning(
            "the setup of %s was never finished; it was moved to %s, and a new database is used", database, aside
        )
    if database.exists():
        MlflowClient(f"{SQLITE}{database}").search_experiments(max_results=1)
        return
    building = database.with_name(f"{database.name}.new")
    for part in ("", "-journal"):  # files of a killed process
        building.with_name(building.name + part).unlink(missing_ok=True)
    MlflowClient(f"{SQLITE}{building}").search_experiments(max_results=1)
    building.replace(database)


def _rows(database: Path, table: str) -> bool:
    """Returns whether the database has the table and a row in it."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        return found is not None and connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None


def experiment_id(client: "MlflowClient", name: str, workspace: Path) -> str:
    """Returns the id of an experiment, which is created if it is missing; a server chooses the place of its files."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is not None:
        return found.experiment_id
    ours = not client.tracking_uri.startswith(("http://", "https://"))
    location = artifact_folder(workspace).as_uri() if ours else None
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (FileNotFoundError, Malformed):
        return {}


COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("datasets", "dataset_source"),
)


def relocate_database(database: Path, before: Path, after: Path) -> int:
    """Changes paths under the folder `before` to `after`, all or none; returns their number."""
    changed = 0
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in COLUMNS:
            if table not in tables:  # from a first set-up that was killed
                continue
            rows = connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
            moved = [(_moved(text, before, after), row) for row, text in rows]
            new = [(text, row) for (text, row), (_, old) in zip(moved, rows, strict=True) if text != old]
            connection.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", new)
            changed += len(new)
    connection.close()
    return changed


def _moved(text: str, before: Path, after: Path) -> str:
    """Returns a path or URI under `before` as one under `after`; the source of a data set is JSON with such values."""
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
