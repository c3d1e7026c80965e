"""The types are right. A test, so that mypy works beside the others: half a minute of one core in a fresh clone."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_mypy_is_content() -> None:
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-m", "mypy"], cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
