"""The records of a run arrive in MLflow completely and once, whatever dies or is away in between."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking import operations
from selftrain.ssl_tasks.tracking.client import connect, default_uri
from selftrain.ssl_tasks.tracking.spool import Sent, Spool, spool_folder, spools
from selftrain.ssl_tasks.tracking.tracker import Tracker, start_ahead, sync
from tests.clock import until
from tests.tracking.observed import everything, runs_by_name
from tests.tracking.telling import send, spool_only, track_round


class Died(BaseException):
    """The process was killed here."""


def test_what_was_half_told_of_a_reused_stage_is_told_to_its_end(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Died

    monkeypatch.setattr(operations, "SOON_SECONDS", 0)
    tracker = spool_only(workspace)
    run = tracker.start_run("new-server", {}, "")
    tracker.link_reused(run, "student-1", artifacts["student-1"])
    tracker.finish_run(run)
    tracker.close()
    with monkeypatch.context() as patch:
        patch.setattr(operations.Applier, "_end", die)
        with pytest.raises(Died):
            send(workspace)
    assert runs_by_name(client)["student-1"][0].info.status == "RUNNING"
    send(workspace)
    (told,) = runs_by_name(client)["student-1"]
    assert told.info.status == "FINISHED"


def test_sending_everything_a_second_time_changes_nothing(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient, tmp_path: Path
) -> None:
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    shutil.copytree(spool_folder(workspace), tmp_path / "kept")
    assert send(workspace).rejected == 0
    before = everything(client)
    shutil.copytree(tmp_path / "kept", spool_folder(workspace), dirs_exist_ok=True)
    assert send(workspace).sent == 35
    assert everything(client) == before


def test_dying_after_any_operation_and_before_noting_it_changes_nothing(
    workspace: Path,
    artifacts: dict[str, Artifact],
    client: MlflowClient,
    fresh_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    noted = Sent.mark
    died: set[int] = set()

    def die_once(self: Sent, offset: int, **learned: object) -> None:
        if offset not in died:
            died.add(offset)
            raise Died
        noted(self, offset, **learned)

    monkeypatch.setattr(Sent, "mark", die_once)
    starts = 0
    while spools(workspace) and starts < 50:
        starts += 1
        try:
            send(workspace)
        except Died:
            continue
    assert starts == 36  # each of the 35 operations once, and a last time
    monkeypatch.undo()
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(fresh_database, undisturbed)
    shutil.copytree(workspace / "store", undisturbed / "store")
    assert_same_but_for_times(everything(client), undisturbed, artifacts)


def assert_same_but_for_times(found: dict, workspace: Path, artifacts: dict[str, Artifact]) -> None:
    """The same run, tracked without disturbance in another workspace, looks the same."""
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    send(workspace)
    expected = everything(connect(default_uri(workspace), workspace))
    for known in (found, expected):
        for run in known["runs"]:
            run["ended"] = None
            run["metrics"] = {key: [(row[0], row[2]) for row in rows] for key, rows in run["metrics"].items()}
    assert found == expected


def test_a_killed_process_leaves_no_shipper_and_its_runs_are_ended_by_the_next(
    workspace: Path, client: MlflowClient
) -> None:
    code = """
import os, pathlib, sys, time
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.tracker import Tracker
workspace = pathlib.Path(sys.argv[1])
tracker = Tracker(default_uri(workspace), workspace)
run = tracker.start_run("killed", {}, "")
tracker.start_stage(run, "teacher")
print(tracker.shipper.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(workspace)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    shipper_pid = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not psutil.pid_exists(shipper_pid))
    assert sync(workspace).left == 0
    runs = runs_by_name(client)
    assert {name: found[0].info.status for name, found in runs.items()} == {"killed": "KILLED", "teacher": "KILLED"}


def test_a_shipper_that_was_started_ahead_serves_the_next_tracker(workspace: Path, client: MlflowClient) -> None:
    uri = default_uri(workspace)
    start_ahead(workspace, uri)
    start_ahead(workspace, uri)  # one is enough
    children = {one.pid for one in psutil.Process().children()}
    trackers = [Tracker(uri, workspace), Tracker(uri, workspace)]
    shippers = [one.shipper for one in trackers]
    assert [one is not None and one.pid in children for one in shippers] == [True, False]
    for number, tracker in enumerate(trackers):
        tracker.finish_run(tracker.start_run(f"run {number}", {}, ""))
        assert tracker.close().left == 0
    assert set(runs_by_name(client)) == {"run 0", "run 1"}


def test_an_unused_shipper_ends_with_its_parent(workspace: Path) -> None:
    code = """
import pathlib, psutil, sys
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.tracker import start_ahead
workspace = pathlib.Path(sys.argv[1])
start_ahead(workspace, default_uri(workspace))
print(psutil.Process().children()[0].pid)
"""
    done = subprocess.run([sys.executable, "-c", code, str(workspace)], check=True, capture_output=True, text=True)
    until(lambda: not psutil.pid_exists(int(done.stdout)))


def test_a_live_run_is_not_touched_by_sync(workspace: Path) -> None:
    tracker = spool_only(workspace)
    tracker.start_run("alive", {}, "")
    assert send(workspace).sent == 0
    assert len(spools(workspace)) == 1


def test_what_the_server_refuses_is_kept_and_offered_again(
    workspace: Path, client: MlflowClient, tmp_path: Path
) -> None:
    tracker = spool_only(workspace)
    run = tracker.start_run("run", {}, "name: run\n")
    tracker.log_file(run, tmp_path / "report.html")
    tracker.finish_run(run)
    tracker.close()
    first = send(workspace)
    assert (first.sent, first.rejected) == (5, 1)
    assert runs_by_name(client)["run"][0].info.status == "FINISHED"
    (tmp_path / "report.html").write_text("<html>")
    second = send(workspace)
    assert (second.sent, second.rejected) == (1, 0)
    paths = {file.path for file in client.list_artifacts(runs_by_name(client)["run"][0].info.run_id)}
    assert paths == {"config.yaml", "report.html"}
    assert spools(workspace) == []


def test_a_password_is_not_written_down(workspace: Path) -> None:
    Tracker("http://anna:secret@127.0.0.1:9/mlflow", workspace, ship=False)
    (spool,) = spools(workspace)
    assert spool.header["uri"] == "http://127.0.0.1:9/mlflow"
    assert "secret" not in spool.path.read_text()


def test_a_torn_line_ends_a_spool(workspace: Path) -> None:
    spool = Spool.create(workspace, "sqlite:///x", "e")
    spool.append("tags", run="r", tags={})
    with spool.path.open("a") as file:
        file.write('{"kind": "ta')
    assert [operation["kind"] for _, operation in spool.operations()] == ["header", "tags"]
    (spool_folder(workspace) / "0-torn.jsonl").write_text('{"kind": "hea')
    assert [one.path for one in spools(workspace)] == [spool.path]


def test_a_full_disk_loses_a_line_and_not_the_run_nor_the_lines_after_it(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, "sqlite:///x", "e")
    path, spool.path = spool.path, Path("/dev/full")
    spool.append("tags", run="r", tags={})
    spool.path = path
    with path.open("a") as file:
        file.write('{"kind": "ta')  # as much as there was room for
    spool.append("end", run="r", ending="FINISHED")
    assert [operation["kind"] for _, operation in spool.operations()] == ["header", "end"]


def test_an_attempt_names_the_attempt_that_it_resumes(workspace: Path, client: MlflowClient) -> None:
    tracker = spool_only(workspace)
    first, second = tracker.start_run("first", {}, ""), tracker.start_run("second", {}, "")
    tracker.spool.append("supersedes", run=second, before=first)
    tracker.close()
    send(workspace)
    runs = runs_by_name(client)
    assert runs["second"][0].data.tags["selftrain.supersedes"] == runs["first"][0].info.run_id
