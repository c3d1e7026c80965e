"""A round told to MLflow in two steps: written down, then sent."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking import shipper
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.shipper import Shipper
from selftrain.ssl_tasks.tracking.tracker import Tracker, metric_rows, spool_rows


def spool_only(workspace: Path) -> Tracker:
    """A tracker whose operations wait for `sync`."""
    return Tracker(default_uri(workspace), workspace, ship=False)


def log_metrics(tracker: Tracker, stage: str, values: Mapping[str, float], step: int) -> None:
    """Spools numbers of a stage, as the follower of its events does."""
    spool_rows(tracker.spool, stage, metric_rows(values, time.time(), step))


def track_round(tracker: Tracker, artifacts: dict[str, Artifact]) -> str:
    """One whole run of one round, with a promotion."""
    run = tracker.start_run("quickstart", {"seed": 0, "teacher.model.name": "small_cnn"}, "seed: 0\n")
    for name, artifact in artifacts.items():
        stage = tracker.start_stage(run, name)
        log_metrics(tracker, stage, {"loss": 0.5, "weird <name>": 1.0}, step=1)
        tracker.finish_stage(stage, artifact, round_number=int(name.endswith("-1")))
    tracker.promote(run, artifacts["student-1"], 0.9, "quickstart", "v" * 64)
    tracker.finish_run(run, tags={"selftrain.stopped": "all rounds done"})
    return run


def send(workspace: Path) -> Shipper:
    """Does the same as `sync`, without its process."""
    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr(shipper, "FIRST_PAUSE", 0.01)
        sender = Shipper(workspace, uri)
        sender.ship_left(None)
    return sender
