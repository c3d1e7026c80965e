"""Creates Prefect's database file, or migrates it to a new version, so that a kill at any moment does no damage.

Prefect migrates in place, and some migrations commit a part before they record that they are done. After a kill between
the two, Prefect could never start again. So we migrate a copy, which replaces the database when it is complete.
"""

import asyncio
import json
import logging
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.locks import file_lock

log = logging.getLogger("selftrain")
SQLITE = "sqlite+aiosqlite:///"
# SQLite's errors about other processes, the disk or permissions; the database itself may be intact.
NOT_ITS_FAULT = ("locked", "full", "readonly", "unable to open", "I/O")
PARTS = ("", "-wal", "-shm", "-journal")  # the files of a database


def prepare_database() -> None:
    """Creates or migrates the database of Prefect's settings; other processes may do so at the same time.

    A broken database is moved aside. It holds only Prefect's pages about earlier runs; the runs are in the workspace.
    """
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    url = str(PREFECT_API_DATABASE_CONNECTION_URL.value())
    if not url.startswith(SQLITE) or ":memory:" in url:  # the owner of a server migrates its database
        return
    database = Path(url.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(database.with_name(f"{database.name}.lock")):
        newest = _newest_revision(database)
        try:
            if database.exists() and _revision(database) == newest:
                return
            _migrate(database)
            if _revision(database) == newest:
                return
            reason = f"found revision {_revision(database)}, expected {newest}"
        except Exception as error:  # whatever a migration raises, the original file is unchanged
            reason = _line(error)
            if not database.exists() or isinstance(error, OSError) or any(word in reason for word in NOT_ITS_FAULT):
                raise SelftrainError(f"Prefect's database {database} cannot be set up: {reason}") from error
        aside = _set_aside(database)
        log.warning(
            "Prefect's database was broken (%s). It was moved to %s, and a new one is used. Prefect's "
            "pages no longer show "
            "earlier runs; `selftrain status --all` does.",
            reason,
            aside,
        )
        _migrate(database)


def _migrate(database: Path) -> None:
    """Migrates a copy of the database, or a new one, which then replaces it."""
    from prefect.server.database import provide_database_interface
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.database.dependencies import temporary_database_config

    building = database.with_name(f"{database.name}.new")
    _remove(building)
    if database.exists():
        _alone(database)
        with closing(sqlite3.connect(database)) as old, closing(sqlite3.connect(building)) as new:
            old.backup(new)
    else:
        _remove(database)  # a remaining log would be used with the new database

    def upgrade() -> None:
        with temporary_database_config(AioSqliteConfiguration(connection_url=f"{SQLITE}{building}")):
            asyncio.run(provide_database_interface().create_db())

    with ThreadPoolExecutor(1) as pool:  # a notebook's main thread has an event loop
        pool.submit(upgrade).result()
    _alone(building)
    descriptor = os.open(building, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    building.replace(database)


def _alone(database: Path) -> None:
    """Moves the whole database into one file; raises an error if another process has it open."""
    with closing(sqlite3.connect(database, timeout=5)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _revision(database: Path) -> str:
    """Returns the version of the database's tables; empty if it has none."""
    with closing(sqlite3.connect(database)) as connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")
        ]
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall() if names else []
    return str(rows[0][0]) if rows else ""


def _newest_revision(database: Path) -> str:
    """Returns the version that this Prefect needs, and stores it, because Prefect reads all migrations to find it."""
    import prefect

    note = database.with_name(f"{database.name}.version")
    try:
        known = json.loads(note.read_text())
        if known["prefect"] == prefect.__version__:
            return str(known["revision"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    from alembic.script import ScriptDirectory
    from prefect.server.database import provide_database_interface
    from prefect.server.database.alembic_commands import alembic_config

    scripts = ScriptDirectory.from_config(alembic_config())
    scripts.version_locations = [str(provide_database_interface().orm.versions_dir)]
    revision = str(scripts.get_current_head())
    write_atomically(note, json.dumps({"prefect": prefect.__version__, "revision": revision}) + "\n")
    return revision


def _set_aside(database: Path) -> Path:
    aside = database.with_name(f"{database.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
    for part in PARTS:
        if (file := database.with_name(database.name + part)).exists():
            file.rename(aside.with_name(aside.name + part))
    return aside


def _remove(database: Path) -> None:
    """Deletes the files of a killed start."""
    for part in PARTS:
        database.with_name(database.name + part).unlink(missing_ok=True)


def _line(error: BaseException) -> str:
    return (str(getattr(error, "orig", None) or error).strip().splitlines() or [repr(error)])[0]
