"""One finished tiny run for the whole session; tests work on copies of its workspace."""

import shutil
from pathlib import Path

import pytest

from selftrain.ssl_tasks.store.locks import file_lock
from tests.browser import browser
from tests.flows.tiny import environment, last, selftrain, write_recipe
from tests.local_servers import settle
from tests.warm import Command

__all__ = ["browser"]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny recipe's file."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def migrated(shared_folder: Path) -> Path:
    """Prefect's database before any run. Its migrations cost seconds of a CPU, which one test pays for all."""
    home = shared_folder / "migrated"
    words = ["-m", "prefect", "server", "database", "upgrade", "--yes"]
    with file_lock(shared_folder / "migrated.lock"):
        if not home.exists():
            upgrade = Command(words, environment(PREFECT_HOME=str(home)))
            said = upgrade.communicate()
            assert upgrade.returncode == 0, said
    return home / "prefect.db"


@pytest.fixture
def prefect_home(tmp_path: Path, migrated: Path) -> Path:
    """The folder of an unused Prefect server."""
    return settle(migrated, tmp_path / "prefect")


@pytest.fixture
def fresh(tmp_path: Path, migrated: Path) -> Path:
    """A workspace in which nothing has run."""
    return settle(migrated, tmp_path / "fresh" / "prefect").parent


@pytest.fixture(scope="session")
def finished(shared_folder: Path, migrated: Path, recipe: str) -> Path:
    """A workspace with one undisturbed run, made by the first test process that asks. Not to be changed."""
    workspace = shared_folder / "finished"
    with file_lock(shared_folder / "finished.lock"):
        if not workspace.exists():
            settle(migrated, workspace / "prefect")
            done = selftrain(workspace, "run", recipe)
            assert done.returncode == 0, done.stderr
    assert last(workspace).info["state"] == "done"
    return workspace


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A workspace of one's own with the finished run in it."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))
