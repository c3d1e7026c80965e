"""A stage's events reach the spool, each under the attempt that wrote it."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from selftrain.ssl_tasks.execution.stage import StageContext
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.tracking import tracker as follower
from selftrain.ssl_tasks.tracking.spool import Spool
from selftrain.ssl_tasks.tracking.tracker import Follower, metric_name
from tests.clock import until


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return Spool.create(tmp_path / "workspace", "sqlite:///nowhere", "e")


@pytest.fixture
def stage(tmp_path: Path) -> StageContext:
    """A stage that writes events."""
    folder = tmp_path / "attempt"
    folder.mkdir()
    return StageContext(TrainSettings(), {}, folder, folder, folder, events=folder / "events.jsonl")


def rows(spool: Spool, run: str) -> list[Any]:
    """(name, value, step) of all metrics spooled for a run."""
    found = [one for _, one in spool.operations() if one["kind"] == "metrics" and one["run"] == run]
    return [(name, value, step) for one in found for name, value, _, step in one["rows"]]


def test_metrics_are_spooled_while_the_stage_runs(spool: Spool, stage: StageContext) -> None:
    assert stage.events is not None
    following = Follower(spool, "run", stage.events)
    following.start()
    stage.metrics(1, {"loss": 0.5, "accuracy": 0.25})
    until(lambda: rows(spool, "run"), "the first metrics")
    stage.progress(3, 10, "steps")
    stage.metrics(2, {"loss": 0.25})
    following.stop()
    assert rows(spool, "run") == [("loss", 0.5, 1), ("accuracy", 0.25, 1), ("loss", 0.25, 2)]
    assert following.progress == (3, 10, "steps")


def test_times_are_the_events_own_so_that_sending_twice_is_seen(spool: Spool, stage: StageContext) -> None:
    assert stage.events is not None
    stage.metrics(1, {"loss": 0.5})
    written = json.loads(stage.events.read_text())["time"]
    Follower(spool, "run", stage.events).stop()
    ((_, operation),) = [one for one in spool.operations() if one[1]["kind"] == "metrics"]
    assert operation["rows"] == [["loss", 0.5, int(written * 1000), 1]]


def test_what_a_killed_attempt_wrote_goes_to_its_own_run(spool: Spool, stage: StageContext) -> None:
    assert stage.events is not None
    first = Follower(spool, "first", stage.events)
    stage.metrics(1, {"loss": 3.0})
    first._drain("first")  # then the process was killed
    stage.metrics(2, {"loss": 2.0})
    second = Follower(spool, "second", stage.events)
    stage.metrics(3, {"loss": 1.0})
    second.stop()
    assert rows(spool, "first") == [("loss", 3.0, 1), ("loss", 2.0, 2)]
    assert rows(spool, "second") == [("loss", 1.0, 3)]
    (link,) = [one for _, one in spool.operations() if one["kind"] == "supersedes"]
    assert (link["run"], link["before"]) == ("second", "first")


def test_half_a_line_waits_for_its_other_half(spool: Spool, stage: StageContext) -> None:
    assert stage.events is not None
    following = Follower(spool, "run", stage.events)
    line = json.dumps({"time": 1.0, "metrics": {"loss": 1.0}, "step": 1})
    stage.events.write_text(line[:20])
    following._drain("run")
    assert rows(spool, "run") == []
    stage.events.write_text(line + "\n")
    following.stop()
    assert rows(spool, "run") == [("loss", 1.0, 1)]


def test_an_incomplete_event_is_skipped(spool: Spool, stage: StageContext) -> None:
    assert stage.events is not None
    stage.events.write_text('{"time": 1.0, "metr\n' + json.dumps({"time": 1.0, "metrics": {"loss": 1.0}}) + "\n")
    Follower(spool, "run", stage.events).stop()
    assert rows(spool, "run") == [("loss", 1.0, 0)]


def test_a_stage_without_events_can_be_followed(spool: Spool, stage: StageContext) -> None:
    assert stage.events is not None
    following = Follower(spool, "run", stage.events)
    following.start()
    following.stop()
    assert rows(spool, "run") == []


def test_numbers_that_mlflow_cannot_hold_are_left_out(spool: Spool, stage: StageContext) -> None:
    assert stage.events is not None
    stage.metrics(1, {"loss": float("inf"), "gap": float("nan"), "fine": 1.0})
    Follower(spool, "run", stage.events).stop()
    assert rows(spool, "run") == [("fine", 1.0, 1)]


def test_many_metrics_are_split_into_requests_that_a_server_takes(spool: Spool, stage: StageContext) -> None:
    assert stage.events is not None
    for step in range(501):
        stage.metrics(step, {"a": 1.0, "b": 2.0})
    Follower(spool, "run", stage.events).stop()
    sizes = [len(one["rows"]) for _, one in spool.operations() if one["kind"] == "metrics"]
    assert sizes == [1000, 2]


def test_the_machine_is_sampled_at_its_own_rate(
    spool: Spool, stage: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage.events is not None
    monkeypatch.setattr(follower, "SYSTEM_SECONDS", 0.01)
    monkeypatch.setattr(follower, "POLL_SECONDS", 0.02)
    following = Follower(spool, "run", stage.events)
    following.start()
    time.sleep(0.2)
    following.stop()
    names = {name for name, _, _ in rows(spool, "run")}
    assert "system/cpu_utilization_percentage" in names


def test_names_are_made_fit_for_mlflow() -> None:
    assert metric_name("per class/<b>é</b>") == "per class/_b___/b_"


def test_a_disk_that_is_full_while_it_notes_how_far_it_came_stops_no_later_attempt(
    spool: Spool, stage: StageContext
) -> None:
    assert stage.events is not None
    stage.metrics(1, {"loss": 0.5})
    following = Follower(spool, "first", stage.events)
    following.stop()
    stage.metrics(2, {"loss": 0.25})
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, allowed[1]))  # every write fails, as on a full disk
    try:
        following.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    Follower(spool, "second", stage.events).stop()
    assert [one["before"] for _, one in spool.operations() if one["kind"] == "supersedes"] == ["first"]
    assert ("loss", 0.25, 2) in rows(spool, "first"), "written down by the next attempt, for the one before"
