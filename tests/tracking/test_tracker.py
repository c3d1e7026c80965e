"""A run reaches MLflow whole: once, whatever dies or is away in between."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow import MlflowClient
from safetensors.numpy import load_file

from ssl_tasks.artifacts import Artifact
from ssl_tasks.tracking import model_page, operations, shipper
from ssl_tasks.tracking.client import connect, default_uri
from ssl_tasks.tracking.registry import champion
from ssl_tasks.tracking.shipper import Shipper
from ssl_tasks.tracking.spool import Sent, Spool, spool_folder, spools
from ssl_tasks.tracking.tracker import Report, Tracker, start_ahead, sync
from tests.clock import own_seconds
from tests.tracking.observed import everything, runs_by_name


@pytest.fixture
def client(workspace: Path) -> MlflowClient:
    """MLflow's own client of the workspace's database."""
    return connect(default_uri(workspace), workspace)


class Died(BaseException):
    """The process was killed here."""


def spool_only(workspace: Path) -> Tracker:
    """A tracker whose operations wait for `sync`."""
    return Tracker(default_uri(workspace), workspace, ship=False)


def track_round(tracker: Tracker, artifacts: dict[str, Artifact]) -> str:
    """One whole run of one round, with a promotion."""
    run = tracker.start_run("quickstart", {"seed": 0, "teacher.model.name": "small_cnn"}, "seed: 0\n")
    for name, artifact in artifacts.items():
        stage = tracker.start_stage(run, name)
        tracker.log_metrics(stage, {"loss": 0.5, "weird <name>": 1.0}, step=1)
        tracker.finish_stage(stage, artifact, round_number=int(name.endswith("-1")))
    tracker.promote(run, artifacts["student-1"], 0.9, "quickstart", "v" * 64)
    tracker.finish_run(run, tags={"selftrain.stopped": "all rounds done"})
    return run


def send(workspace: Path) -> Shipper:
    """What `sync` does, without its process."""
    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr(shipper, "FIRST_PAUSE", 0.01)
        sender = Shipper(workspace, uri)
        sender.ship_left(None)
    return sender


def test_importing_the_tracker_imports_no_mlflow() -> None:
    heavy = "{'mlflow', 'torch', 'pandas', 'pyarrow', 'sqlalchemy'}"
    code = f"import sys, ssl_tasks.tracking.tracker; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_is_a_parent_with_a_child_for_each_stage(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient
) -> None:
    tracker = Tracker(default_uri(workspace), workspace)
    started = own_seconds()
    track_round(tracker, artifacts)
    assert own_seconds() - started < 0.3  # all seven stages together
    assert tracker.close(timeout=600) == Report(sent=35, champion="version 1, the first, with 0.9000 on validation")
    runs = runs_by_name(client)
    (parent,) = runs["quickstart"]
    assert parent.data.params == {"seed": "0", "teacher.model.name": "small_cnn"}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["config.yaml"]
    assert set(runs) == {"quickstart", *artifacts}
    children = [one for name in artifacts for one in runs[name]]
    assert {one.data.tags["mlflow.parentRunId"] for one in children} == {parent.info.run_id}
    assert {one.info.status for one in [parent, *children]} == {"FINISHED"}
    history = client.get_metric_history(parent.info.run_id, "validation_accuracy")
    assert sorted((one.step, one.value) for one in history) == [(0, 0.8), (1, 0.9)]
    assert spools(workspace) == []


def test_inputs_have_digests_and_contexts_and_only_what_the_stage_depends_on(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient
) -> None:
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    send(workspace)
    (student,) = runs_by_name(client)["student-1"]
    data = {one.dataset.name: one for one in student.inputs.dataset_inputs}
    assert set(data) == {"dataset.labeled", "dataset.validation", "dataset.unlabeled", "selection"}
    tags = {tag.key: tag.value for tag in data["selection"].tags}
    assert tags == {"mlflow.data.context": "selection", "selftrain.sha256": artifacts["select-1"].digest}
    assert Path(json.loads(data["selection"].dataset.source)["uri"].removeprefix("file://")).is_dir()
    (predict,) = runs_by_name(client)["predict-1"]
    (teacher,) = runs_by_name(client)["teacher"]
    assert [one.model_id for one in predict.inputs.model_inputs] == [
        one.model_id for one in teacher.outputs.model_outputs
    ]
    assert "preview.csv" in {file.path for file in client.list_artifacts(predict.info.run_id)}


def test_the_champion_loads_back_without_unpickling(
    workspace: Path,
    artifacts: dict[str, Artifact],
    client: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    send(workspace)
    held = champion(client, "quickstart")
    assert held is not None
    assert held.tags["selftrain.digest"] == artifacts["student-1"].digest
    model_id = str(held.source).rsplit("/", 1)[-1]
    assert client.get_logged_model(model_id).source_run_id == runs_by_name(client)["student-1"][0].info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(workspace))
    folder = Path(mlflow.artifacts.download_artifacts("models:/quickstart@champion", dst_path=str(tmp_path)))
    assert load_file(folder / "model.safetensors")["weight"].tolist() == [2, 2, 2]


def test_a_registered_model_says_what_it_is_who_taught_it_and_how_to_load_it(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient
) -> None:
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    send(workspace)
    assert "selftrain predict champion:quickstart" in client.get_registered_model("quickstart").description
    held = champion(client, "quickstart")
    assert held is not None
    text, teacher, student = str(held.description), artifacts["teacher"].digest, artifacts["student-1"].digest
    model = client.get_logged_model(str(held.source).rsplit("/", 1)[-1])
    assert f"[student-1](#/experiments/{model.experiment_id}/runs/{model.source_run_id}) of run `quickstart`" in text
    assert "| accuracy on validation images | 90.0 % |" in text
    assert "| accuracy on test images | 89.0 % |" in text
    assert re.search(rf"\| taught by \| \[teacher]\(#/experiments/\d+/models/m-\w+\) `{teacher[:12]}` \|", text)
    assert f"| data: labeled | `{'l' * 12}` |" in text
    assert f"selftrain predict {student[:12]} IMAGES" in text
    assert 'download_artifacts("models:/quickstart/1")' in text
    assert f"model: teacher  {teacher[:12]}" in text
    assert held.tags["selftrain.teacher"] == teacher
    assert held.tags["selftrain.test_accuracy"] == "0.89"
    read = {key.removeprefix("selftrain.input."): tag for key, tag in held.tags.items() if ".input." in key}
    assert set(read) == {"dataset.labeled", "dataset.validation", "dataset.unlabeled", "selection"}
    assert artifacts["select-1"].digest.startswith(read["selection"])


def test_a_models_scores_name_the_images_that_they_were_measured_on(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient
) -> None:
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    send(workspace)
    held = champion(client, "quickstart")
    assert held is not None
    model = client.get_logged_model(str(held.source).rsplit("/", 1)[-1])
    on = {metric.key: (metric.dataset_name, metric.dataset_digest) for metric in model.metrics or []}
    assert on["validation_accuracy"] == ("dataset.validation", "v" * 32)
    assert on["test_accuracy"] == ("dataset.test", "t" * 32)
    assert on["seconds"] == (None, None)


def test_a_description_is_never_longer_than_mlflow_keeps(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_page, "as_tree", lambda _graph: "a line\n" * 1000)
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    send(workspace)
    held = champion(client, "quickstart")
    assert held is not None
    assert len(str(held.description)) == model_page.LONGEST


def test_a_model_becomes_champion_only_if_it_beats_the_holder(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient
) -> None:
    tracker = spool_only(workspace)
    run = track_round(tracker, artifacts)
    tracker.promote(run, artifacts["teacher"], 0.9, "quickstart")
    tracker.close()
    send(workspace)
    (parent,) = runs_by_name(client)["quickstart"]
    assert parent.data.tags["selftrain.champion"] == "version 1 keeps it: 0.9000 on validation against 0.9000"
    tracker = spool_only(workspace)
    tracker.promote(run, artifacts["teacher"], 0.91, "quickstart")
    tracker.close()
    send(workspace)
    held = champion(client, "quickstart")
    assert held is not None
    assert (held.version, held.tags["selftrain.digest"]) == (2, artifacts["teacher"].digest)


def test_a_reused_stage_makes_no_run_and_points_to_the_one_that_computed_it(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient
) -> None:
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    again = tracker.start_run("again", {}, "")
    for name, artifact in artifacts.items():
        tracker.link_reused(again, name, artifact, round_number=int(name.endswith("-1")))
    tracker.finish_run(again)
    tracker.close()
    assert send(workspace).rejected == 0
    runs = runs_by_name(client)
    assert {name: len(found) for name, found in runs.items()} == dict.fromkeys(["quickstart", "again", *artifacts], 1)
    (second,) = runs["again"]
    for name in artifacts:
        assert second.data.tags[f"selftrain.reused.{name}"] == runs[name][0].info.run_id
    assert second.data.metrics["validation_accuracy"] == 0.9
    assert len(second.inputs.model_inputs) == 2


def test_a_server_that_never_heard_of_a_reused_stage_is_told(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "SOON_SECONDS", 0)
    tracker = spool_only(workspace)
    run = tracker.start_run("new-server", {}, "")
    for name, artifact in artifacts.items():
        tracker.link_reused(run, name, artifact)
    tracker.promote(run, artifacts["student-1"], 0.9, "quickstart")
    tracker.finish_run(run)
    tracker.close()
    send(workspace)
    runs = runs_by_name(client)
    assert runs["student-1"][0].info.start_time < runs["new-server"][0].info.start_time
    assert "selftrain.recorded" in runs["student-1"][0].data.tags
    held = champion(client, "quickstart")
    assert held is not None
    assert held.run_id == runs["student-1"][0].info.run_id


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
from ssl_tasks.tracking.client import default_uri
from ssl_tasks.tracking.tracker import Tracker
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
    wait_for(lambda: not psutil.pid_exists(shipper_pid), 20)
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


def test_a_shipper_that_nobody_takes_ends_with_its_parent(workspace: Path) -> None:
    code = """
import pathlib, psutil, sys
from ssl_tasks.tracking.client import default_uri
from ssl_tasks.tracking.tracker import start_ahead
workspace = pathlib.Path(sys.argv[1])
start_ahead(workspace, default_uri(workspace))
print(psutil.Process().children()[0].pid)
"""
    done = subprocess.run([sys.executable, "-c", code, str(workspace)], check=True, capture_output=True, text=True)
    wait_for(lambda: not psutil.pid_exists(int(done.stdout)), 60)


def test_a_live_run_is_not_touched_by_sync(workspace: Path) -> None:
    tracker = spool_only(workspace)
    tracker.start_run("alive", {}, "")
    assert send(workspace).sent == 0
    assert len(spools(workspace)) == 1


def test_dead_attempts_are_ended_by_their_local_ids(workspace: Path, client: MlflowClient) -> None:
    tracker = spool_only(workspace)
    run = tracker.start_run("run", {}, "")
    tracker.end_dead([run])
    tracker.close()
    send(workspace)
    assert runs_by_name(client)["run"][0].info.status == "KILLED"


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


def test_an_attempt_names_the_one_it_goes_on_from(workspace: Path, client: MlflowClient) -> None:
    tracker = spool_only(workspace)
    first, second = tracker.start_run("first", {}, ""), tracker.start_run("second", {}, "")
    tracker.spool.append("supersedes", run=second, before=first)
    tracker.close()
    send(workspace)
    runs = runs_by_name(client)
    assert runs["second"][0].data.tags["selftrain.supersedes"] == runs["first"][0].info.run_id


def wait_for(ready: Callable[[], bool], seconds: float) -> None:
    """Fails where it is not so in time."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
