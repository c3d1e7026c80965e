"""A workspace with a database that is set up already, and a pipeline in miniature."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking.client import QUIET, connect, default_uri
from tests.tracking.tracked_stages import pipeline

os.environ.update(QUIET)


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty MLflow database: the seconds of its migrations are spent once. In a process of its own,
    since MLflow's migrations change the root logger."""
    folder = tmp_path_factory.mktemp("fresh")
    code = (
        "import sys, pathlib; from selftrain.ssl_tasks.tracking.client import connect\n"
        "connect(sys.argv[1], pathlib.Path('.'))"
    )
    subprocess.run([sys.executable, "-c", code, default_uri(folder)], check=True)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace with a fresh database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "workspace"
    shutil.copytree(fresh_database, folder)
    return folder


@pytest.fixture
def artifacts(workspace: Path) -> dict[str, Artifact]:
    """The artifacts of one round."""
    return pipeline(workspace)


@pytest.fixture
def client(workspace: Path) -> MlflowClient:
    """MLflow's own client of the workspace's database."""
    return connect(default_uri(workspace), workspace)
