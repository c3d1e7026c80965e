"""The data set that the tests of training share, built once."""

from pathlib import Path

import pytest

from selftrain.ssl_tasks.store.artifacts import Artifact
from tests.training.small_runs import digits


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Digits with five labels a class."""
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty workspace."""
    return tmp_path
