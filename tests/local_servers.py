"""Real servers of MLflow and Prefect on loopback, which come and go."""

import os
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selftrain.flows.prefect.server import WITHOUT_BLOCKS
from tests.warm import Command

START_SECONDS = 240.0


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """MLflow over the database in `folder`; killed at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "files")]
    with _server(folder, command, f"http://127.0.0.1:{port}/version", {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}):
        yield


def settle(database: Path, home: Path) -> Path:
    """A Prefect home with a copy of a database in it."""
    home.mkdir(parents=True)
    shutil.copy(database, home / "prefect.db")
    return home


@contextmanager
def prefect_server(folder: Path, port: int) -> Iterator[str]:
    """Prefect over the database in `folder`, by its API's address; killed at the end."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"]
    variables = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", **WITHOUT_BLOCKS}
    with _server(folder, command, f"http://127.0.0.1:{port}/api/health", variables):
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def _server(folder: Path, command: list[str], healthy: str, variables: dict[str, str]) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    process = Command(command[1:], {**kept, **variables}, session=True, folder=folder)
    try:
        _wait_until_healthy(healthy, process)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_healthy(url: str, process: Command) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            with urllib.request.urlopen(url, timeout=3):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")
