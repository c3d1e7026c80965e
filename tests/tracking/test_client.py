"""The first connection, a moved workspace, a server of another version, and a server that comes and goes."""

import base64
import contextlib
import http.server
import json
import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking.client import check_server, connect, default_uri
from selftrain.ssl_tasks.tracking.spool import spools
from selftrain.ssl_tasks.tracking.tracker import Report, Tracker, sync
from selftrain.ssl_tasks.training.launch import free_port
from tests.clock import own_seconds, until
from tests.local_servers import mlflow_server
from tests.tracking.observed import runs_by_name
from tests.tracking.telling import log_metrics


def test_eight_processes_race_to_a_fresh_database(tmp_path: Path) -> None:
    code = """
import os, pathlib, sys
import mlflow  # once, before the race
from selftrain.ssl_tasks.tracking.client import connect, default_uri, experiment_id
def one(folder):
    client = connect(default_uri(folder), folder)
    client.create_run(experiment_id(client, "selftrain", folder))
children = []
for _ in range(8):
    pid = os.fork()
    if not pid:
        try:
            one(pathlib.Path(sys.argv[1]))
            os._exit(0)
        finally:
            os._exit(1)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str([0] * 8), result.stderr
    client = connect(default_uri(tmp_path), tmp_path)
    experiments = {one.name: one.experiment_id for one in client.search_experiments()}
    assert sorted(experiments) == ["Default", "selftrain"]
    assert len(client.search_runs([experiments["selftrain"]])) == 8


def test_a_database_whose_first_set_up_was_killed_is_set_up_by_the_next_process(tmp_path: Path) -> None:
    code = """
import os, pathlib, signal, sys
from mlflow.store.db import utils
from selftrain.ssl_tasks.tracking.client import connect, default_uri
utils._upgrade_db = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # its tables are there, their version is not
connect(default_uri(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[1]))
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert connect(default_uri(tmp_path), tmp_path).search_experiments()
    assert sorted(path.name for path in tmp_path.glob("mlflow.db*")) == [
        "mlflow.db",
        "mlflow.db.lock",
        "mlflow.db.ready",
    ]


def test_half_a_database_without_runs_is_set_aside_and_one_with_runs_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(half)) as database:
        database.execute("CREATE TABLE metrics (key TEXT, step INT)")
    with caplog.at_level(logging.WARNING, "selftrain"):
        assert connect(default_uri(tmp_path), tmp_path).search_experiments()
    assert len(list(tmp_path.glob("mlflow.db.broken-*"))) == 1
    assert "was never finished" in caplog.text
    kept = tmp_path / "kept"
    kept.mkdir()
    with contextlib.closing(sqlite3.connect(kept / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE runs (id TEXT)")
        database.execute("INSERT INTO runs VALUES ('1')")
    with pytest.raises(Exception, match="no such"):
        connect(default_uri(kept), kept)
    assert not list(kept.glob("mlflow.db.broken-*"))


def test_a_moved_workspace_finds_its_files_again(workspace: Path, artifacts: dict[str, Artifact]) -> None:
    tracker = Tracker(default_uri(workspace), workspace, ship=False)
    run = tracker.start_run("run", {}, "a: 1\n")
    tracker.finish_stage(tracker.start_stage(run, "teacher"), artifacts["teacher"])
    tracker.finish_run(run)
    tracker.close()
    assert sync(workspace).left == 0
    moved = workspace.with_name("elsewhere")
    shutil.move(workspace, moved)
    client = connect(default_uri(moved), moved)
    (found,) = runs_by_name(client)["run"]
    path = client.download_artifacts(found.info.run_id, "config.yaml")
    assert Path(path).read_text() == "a: 1\n"
    (teacher,) = runs_by_name(client)["teacher"]
    model = client.get_logged_model(teacher.outputs.model_outputs[0].model_id)
    assert model.artifact_location.startswith(moved.as_uri())


class Answer(http.server.BaseHTTPRequestHandler):
    """An MLflow server of long ago."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"2.9.2")

    def log_message(self, *_: object) -> None:
        """Silence."""


def test_a_server_of_another_major_version_is_refused_in_words() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match=r"has version '2\.9\.2', expected 3\.x"):
            check_server(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


class Closed(http.server.BaseHTTPRequestHandler):
    """As much of an MLflow server as an empty spool needs, behind a login: me, secret."""

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
        self.send_response(200 if allowed else 401)
        self.end_headers()
        experiment = {"experiment_id": "1", "name": "selftrain", "lifecycle_stage": "active"}
        self.wfile.write(json.dumps({"experiment": experiment}).encode() if allowed else b"who are you?")

    def log_message(self, *_: object) -> None:
        """Silence."""


def test_what_waits_is_sent_with_the_password_that_its_spool_does_not_hold(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://me:secret@127.0.0.1:{server.server_port}"
        Tracker(uri, workspace, ship=False).close()
        assert not any("secret" in path.read_text() for path in workspace.glob("tracking/spool/*"))
        assert sync(workspace).left == 1
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert sync(workspace) == Report(sent=1)
        server.shutdown()


def test_a_server_that_dies_in_the_middle_delays_nothing_and_loses_nothing(
    workspace: Path, artifacts: dict[str, Artifact], fresh_database: Path, tmp_path: Path
) -> None:
    home, port = tmp_path / "server", free_port()
    shutil.copytree(fresh_database, home)
    uri = f"http://127.0.0.1:{port}"
    with mlflow_server(home, port):
        tracker = Tracker(uri, workspace)
        run = tracker.start_run("run", {"seed": 1}, "seed: 1\n")
        stage = tracker.start_stage(run, "teacher")
        log_metrics(tracker, stage, {"loss": 1.0}, step=1)
        client = MlflowClient(uri)
        until(lambda: "teacher" in runs_by_name(client), "the stage's run", pause=0.2)
    started = own_seconds()
    log_metrics(tracker, stage, {"loss": 0.5}, step=2)
    tracker.finish_stage(stage, artifacts["teacher"])
    tracker.finish_run(run)
    assert own_seconds() - started < 0.1
    report = tracker.close()
    assert report.left == 4
    assert "MLflow does not answer" in report.reason
    away = sync(workspace)
    assert (away.sent, away.left) == (0, 4)
    with mlflow_server(home, port):
        assert sync(workspace).sent == 4
        runs = runs_by_name(MlflowClient(uri))
        assert {name: [one.info.status for one in found] for name, found in runs.items()} == {
            "run": ["FINISHED"],
            "teacher": ["FINISHED"],
        }
        history = MlflowClient(uri).get_metric_history(runs["teacher"][0].info.run_id, "loss")
        assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 0.5)]
        assert len(runs["teacher"][0].outputs.model_outputs) == 1
    assert spools(workspace) == []
