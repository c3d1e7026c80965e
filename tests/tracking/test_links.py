"""The way from a report to MLflow's pages."""

import json
import os
from pathlib import Path

import pytest

from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.runs import Run, StageRecord
from selftrain.ssl_tasks.tracking.client import connect, default_uri
from selftrain.ssl_tasks.tracking.lineage import announced, find_pages, run_links, served_at
from selftrain.ssl_tasks.tracking.tracker import Tracker
from tests.tracking.telling import send


@pytest.fixture
def tracked_run(workspace: Path, artifacts: dict[str, Artifact]) -> Run:
    """A run whose teacher was computed, whose student was reused from another one, and whose rest was not sent."""
    run = Run.create(workspace, RunConfig())
    for order, (name, artifact) in enumerate(artifacts.items()):
        run.record(StageRecord(name, artifact.stage, "computed", digest=artifact.digest, order=order))
    tracker = Tracker(default_uri(workspace), workspace, ship=False)
    earlier = tracker.start_run("earlier", {})
    tracker.finish_stage(tracker.start_stage(earlier, "student-1"), artifacts["student-1"])
    pipeline = tracker.start_run(run.id, {}, tags={"selftrain.run": run.id})
    tracker.finish_stage(tracker.start_stage(pipeline, "teacher"), artifacts["teacher"])
    tracker.link_reused(pipeline, "student-1", artifacts["student-1"])
    tracker.close()
    send(workspace)
    return run


def test_pages_are_those_of_the_runs_that_computed_the_stages(
    workspace: Path, artifacts: dict[str, Artifact], tracked_run: Run
) -> None:
    client = connect(default_uri(workspace), workspace)
    pages = find_pages(client, "https://me:secret@tracking.example/prefix/", tracked_run)
    assert set(pages) == {tracked_run.id, artifacts["teacher"].digest, artifacts["student-1"].digest}
    assert all(page.startswith("https://tracking.example/prefix/#/experiments/") for page in pages.values())
    for name in ("teacher", "student-1"):
        run = client.get_run(pages[artifacts[name].digest].rpartition("/")[2])
        assert (run.info.run_name, run.data.tags["selftrain.digest"]) == (name, artifacts[name].digest)


def test_without_a_server_there_are_no_links(tracked_run: Run) -> None:
    assert run_links(tracked_run) == {}


def test_a_server_that_is_away_costs_the_links_alone(tracked_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert run_links(tracked_run) == {}


def test_only_the_address_of_a_live_server_is_used(workspace: Path) -> None:
    with announced(workspace, "http://127.0.0.1:5000"):
        assert served_at(workspace) == "http://127.0.0.1:5000"
        path = workspace / "up.json"
        told = json.loads(path.read_text())
        assert told["pid"] == os.getpid()
        path.write_text(json.dumps({**told, "pid_started": told["pid_started"] - 100}))  # a dead one's number, reused
        assert served_at(workspace) == ""
    assert served_at(workspace) == ""
