"""One finished tiny run for the whole session; tests work on copies of its workspace."""

import shutil
from pathlib import Path

import pytest

from ssl_tasks.artifacts import file_lock
from tests.flows.tiny import last, selftrain, write_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny recipe's file."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def finished(shared_folder: Path, recipe: str) -> Path:
    """A workspace with one undisturbed run, made by the first test process that asks. Not to be changed."""
    workspace = shared_folder / "finished"
    with file_lock(shared_folder / "finished.lock"):
        if not workspace.exists():
            done = selftrain(workspace, "run", recipe)
            assert done.returncode == 0, done.stderr
    assert last(workspace).info["state"] == "done"
    return workspace


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A workspace of one's own with the finished run in it."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))
