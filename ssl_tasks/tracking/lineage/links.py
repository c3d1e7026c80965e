"""Addresses of MLflow's pages about a run and its stages, where a server is known that a browser can open."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.json_file import Malformed, Shape, read_json
from selftrain.ssl_tasks.store.runs import Run, alive, owner
from selftrain.ssl_tasks.tracking.client import connect, default_uri
from selftrain.ssl_tasks.tracking.spool import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("selftrain.tracking")
UP, PAUSE, MOST_RUNS = "up.json", 0.25, 10_000
REUSED = "selftrain.reused."  # and a stage's name: the tag of a pipeline run with the run that computed the stage


@contextlib.contextmanager
def announced(workspace: Path, address: str) -> Iterator[None]:
    """Others learn where the workspace's MLflow is served, as long as this process does."""
    path = workspace / UP
    write_atomically(path, json.dumps({"mlflow": without_password(address), **owner()}) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


class Announcement(Shape):
    """Where MLflow is served, and by whom."""

    mlflow: str
    host: str
    pid: int
    pid_started: float


def served_at(workspace: Path) -> str:
    """The user's server, or that of a `selftrain up` that is running; empty where there is neither."""
    uri = default_uri(workspace)
    if uri.startswith(("http://", "https://")):
        return uri
    try:
        told = read_json(workspace / UP, Announcement)
    except (FileNotFoundError, Malformed):
        return ""
    return str(told["mlflow"]) if alive(told) else ""


def run_links(run: Run, patience: float = 0.0) -> dict[str, str]:
    """Pages by what they are about: the run's id, the digests of its stages. Empty where no server is known.

    Stages reach MLflow a little later than they end; `patience` are the seconds to wait for them.
    """
    address = served_at(run.workspace)
    if not address:
        return {}
    deadline = time.monotonic() + patience
    wanted = {stage.digest for stage in run.stages() if stage.digest}
    try:
        client = connect(default_uri(run.workspace), run.workspace)  # the server of `up` serves that database
        while not wanted <= set(found := find_pages(client, address, run)) and time.monotonic() < deadline:
            time.sleep(PAUSE)
    except Exception as error:  # noqa: BLE001 - whatever MLflow or a socket raises: a page without links is a page too
        log.warning("no links to MLflow at %s: %s", without_password(address), without_password(str(error)))
        return {}
    return found


def find_pages(client: "MlflowClient", address: str, run: Run) -> dict[str, str]:
    """The same, of what this server knows by now."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`selftrain.run` = '{run.id}'", max_results=1)
    if not found:
        return {}
    pipeline = found[0].info
    children = client.search_runs(
        [pipeline.experiment_id], f"tags.`mlflow.parentRunId` = '{pipeline.run_id}'", max_results=MOST_RUNS
    )
    by_digest = {child.data.tags.get("selftrain.digest", ""): child.info.run_id for child in children}
    tags = found[0].data.tags
    by_digest |= {stage.digest: tags[REUSED + stage.name] for stage in run.stages() if REUSED + stage.name in tags}
    pages = f"{without_password(address).rstrip('/')}/#/experiments/{pipeline.experiment_id}/runs/"
    return {about: pages + run_id for about, run_id in {**by_digest, run.id: pipeline.run_id}.items() if about}
