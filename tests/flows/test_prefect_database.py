"""Prefect's database: killed, doubled and broken starts all end in one that works; a failure says why."""

import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import temporary_database_config
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from selftrain.flows.prefect.database import SQLITE, prepare_database
from selftrain.flows.prefect.server import prefect_api
from selftrain.ssl_tasks.errors import SelftrainError
from tests.clock import HANG
from tests.flows.tiny import environment

# The revision before 22ef3915ccd8, which commits an index before it notes that it is done.
BEFORE_THE_INDEX = "cef24af2ec34"
PREPARE = (
    "from selftrain.flows.prefect.database import prepare_database; print('begins', flush=True); prepare_database()"
)


@pytest.fixture
def database(prefect_home: Path) -> Iterator[Path]:
    """A whole database, which Prefect's settings name."""
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"{SQLITE}{prefect_home / 'prefect.db'}"}):
        yield prefect_home / "prefect.db"


def rows(database: Path, query: str) -> list[tuple[str, ...]]:
    """An answer of SQLite's."""
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(query).fetchall()


def revision(database: Path) -> str:
    """Returns the version of the database's tables."""
    return rows(database, "SELECT version_num FROM alembic_version")[0][0]


def starts(home: Path, count: int) -> "list[subprocess.Popen[str]]":
    """So many processes that set the same database up at once."""
    given = environment(PREFECT_HOME=str(home))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [subprocess.Popen([sys.executable, "-c", PREPARE], env=given, text=True, **pipes) for _ in range(count)]


def half_migrated(database: Path) -> None:
    """As a kill leaves it: a part of a migration is committed, and its number is not."""
    rows(database, f"UPDATE alembic_version SET version_num = '{BEFORE_THE_INDEX}'")


def test_a_whole_database_is_left_as_it_is(database: Path) -> None:
    before = database.read_bytes()
    prepare_database()
    assert database.read_bytes() == before


def test_a_half_migrated_database_is_set_aside_with_a_warning_and_a_new_one_begins(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = revision(database)
    half_migrated(database)
    with caplog.at_level(logging.WARNING, "selftrain"):
        logging.getLogger("selftrain").propagate = True
        prepare_database()
    assert revision(database) == newest
    (aside,) = database.parent.glob("prefect.db.broken-*")
    assert revision(aside) == BEFORE_THE_INDEX
    assert "already exists) and is now" in caplog.text
    assert str(aside) in caplog.text


def test_a_file_that_is_no_database_is_set_aside(database: Path) -> None:
    newest = revision(database)
    database.write_bytes(b"not SQLite" * 1000)
    prepare_database()
    assert revision(database) == newest
    assert [path.read_bytes()[:10] for path in database.parent.glob("*.broken-*")] == [b"not SQLite"]


def test_a_database_in_use_is_never_replaced(database: Path) -> None:
    half_migrated(database)
    before = database.read_bytes()
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SelftrainError, match=r"prefect\.db cannot be set up: database is locked"):
            prepare_database()
    assert not list(database.parent.glob("*.broken-*"))
    assert len(database.read_bytes()) == len(before)


def test_an_older_database_keeps_its_rows(database: Path) -> None:
    newest = revision(database)
    flow = "INSERT INTO flow (id, created, updated, name, tags) VALUES ('1', '2026', '2026', 'kept', '[]')"
    rows(database, flow)
    # The newest migration is undone by hand: it has made a table or a column that is not there before it.
    words = [sys.executable, "-m", "prefect", "server", "database", "downgrade", "--yes", "-r", "-1"]
    given = environment(PREFECT_HOME=str(database.parent))
    subprocess.run(words, env=given, check=True, capture_output=True, timeout=HANG)
    assert revision(database) != newest
    prepare_database()
    assert revision(database) == newest
    assert rows(database, "SELECT name FROM flow") == [("kept",)]
    assert not list(database.parent.glob("*.broken-*"))


# uvicorn ends its thread by SystemExit, of which pytest warns and Python says nothing
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_api_that_does_not_start_says_why(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_migrated(database)
    monkeypatch.setattr("selftrain.flows.prefect.server.prepare_database", lambda: None)
    broken = temporary_database_config(AioSqliteConfiguration(connection_url=f"{SQLITE}{database}"))
    said = r"Prefect's API did not start: .*index \w+ already exists"
    with broken, pytest.raises(SelftrainError, match=said), prefect_api(tmp_path / "workspace"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.long)])
def test_starts_that_are_killed_at_many_moments_and_doubled_leave_a_database_that_starts(
    tmp_path: Path, kills: int
) -> None:
    """Each kill hits two starts that race; the moments are spread over the migration."""
    home = tmp_path / "prefect"
    for at in range(kills):
        both = starts(home, 2)
        for one in both:
            assert one.stdout is not None
            assert one.stdout.readline() == "begins\n"
        time.sleep(0.2 + 4 * at / kills)
        for one in both:
            one.kill()
            one.communicate()
        assert not (home / "prefect.db").exists() or revision(home / "prefect.db")
    for one in starts(home, 2):
        assert one.communicate(timeout=HANG)[1] == ""
        assert one.returncode == 0
    assert not list(home.glob("*.broken-*"))
    assert not (home / "prefect.db.new").exists()
