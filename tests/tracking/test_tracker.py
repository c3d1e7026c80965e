"""MLflow shows a run's stages, their inputs and outputs, and the registered model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from safetensors.numpy import load_file

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking import model_card, operations
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.entities import champion
from selftrain.ssl_tasks.tracking.spool import spools
from selftrain.ssl_tasks.tracking.tracker import Report, Tracker, sync
from tests.clock import own_seconds
from tests.tracking.observed import runs_by_name
from tests.tracking.telling import send, spool_only, track_round


def test_importing_the_tracker_imports_no_mlflow() -> None:
    heavy = "{'mlflow', 'torch', 'pandas', 'pyarrow', 'sqlalchemy'}"
    code = f"import sys, selftrain.ssl_tasks.tracking.tracker; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_is_a_parent_with_a_child_for_each_stage(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient
) -> None:
    tracker = Tracker(default_uri(workspace), workspace)
    started = own_seconds()
    track_round(tracker, artifacts)
    assert own_seconds() - started < 0.3  # all seven stages together
    assert tracker.close(timeout=600) == Report(
        sent=35, champion="version 1 is the first champion, with 0.9000 on validation"
    )
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


def test_a_registered_models_page_describes_it_its_teacher_and_how_to_load_it(
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
    monkeypatch.setattr(model_card, "as_tree", lambda _graph: "a line\n" * 1000)
    tracker = spool_only(workspace)
    track_round(tracker, artifacts)
    tracker.close()
    send(workspace)
    held = champion(client, "quickstart")
    assert held is not None
    assert len(str(held.description)) == model_card.LONGEST


@pytest.mark.parametrize(("images", "note"), [("v" * 64, ""), ("w" * 64, " (on different validation images)")])
def test_a_model_becomes_champion_only_if_it_beats_the_holder(
    workspace: Path, artifacts: dict[str, Artifact], client: MlflowClient, images: str, note: str
) -> None:
    tracker = spool_only(workspace)
    run = track_round(tracker, artifacts)
    tracker.promote(run, artifacts["teacher"], 0.9, "quickstart", images)
    tracker.close()
    send(workspace)
    (parent,) = runs_by_name(client)["quickstart"]
    assert (
        parent.data.tags["selftrain.champion"]
        == f"version 1 remains champion: 0.9000 on validation{note} against 0.9000"
    )
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


@pytest.mark.parametrize(
    "how", ["print('hello')", "print('hello', end='', flush=True)", "print('7')\nraise SystemExit(1)"]
)
def test_what_others_print_is_not_taken_for_the_shippers_answer(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A sitecustomize.py, which Python imports first wherever it starts, may print, and may end it all."""
    (tmp_path / "sitecustomize.py").write_text(how)
    tracker = spool_only(workspace)
    tracker.start_run("quickstart", {})
    tracker.close()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    report = sync(workspace)
    assert (report.left, report.reason) == (
        (1, "the process that sends records died; see shipper.log") if "Exit" in how else (0, "")
    )
