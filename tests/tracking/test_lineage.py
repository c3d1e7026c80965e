"""Lineage from manifests and from MLflow; verification; one image's history; hostile text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from selftrain.ssl_tasks.errors import NotFound
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.runs import Run, StageRecord
from selftrain.ssl_tasks.tracking.client import connect, default_uri
from selftrain.ssl_tasks.tracking.entities import champion
from selftrain.ssl_tasks.tracking.lineage import Graph, Node, as_json, as_mermaid, as_tree, visible
from selftrain.ssl_tasks.tracking.shipper import Shipper
from selftrain.ssl_tasks.tracking.trace import (
    find_artifact,
    mlflow_lineage,
    resting_on,
    sample_lineage,
    sample_tree,
    store_lineage,
    verify,
)
from selftrain.ssl_tasks.tracking.tracker import Tracker

HOSTILE = '"]<script>alert(1)</script>\x1b[31m\nclick'


@pytest.fixture
def store(workspace: Path, artifacts: dict[str, Artifact]) -> Store:
    """The store of the round."""
    return Store(workspace / "store")


@pytest.fixture
def graph(store: Store, artifacts: dict[str, Artifact]) -> Graph:
    """The lineage of the student, with the names of its run."""
    return store_lineage(store, artifacts["student-1"], {one.key: name for name, one in artifacts.items()})


def test_a_student_rests_on_its_selection_its_teacher_and_the_labels(graph: Graph) -> None:
    shown = as_tree(graph)
    lines = [line.strip("│├└─ ").split("  ")[0] for line in shown.splitlines()]
    assert lines[:4] == ["student-1", "dataset: dataset", "labeled: labeled · 4 images", "test: test"]
    labels = [node.label for node in graph.nodes.values() if node.kind == "labels"]
    assert sorted(labels) == ["labeled · 4 images", "test", "unlabeled · 6 images", "validation"]
    kinds = sorted(node.kind for node in graph.nodes.values() if node.kind != "labels")
    assert kinds == ["dataset", "model", "model", "predictions", "selection"]
    assert "selection: select-1" in shown
    assert "model: teacher" in shown


def test_a_node_shown_before_is_named_and_not_repeated(graph: Graph) -> None:
    shown = as_tree(graph)
    assert shown.count("labeled: labeled") == 1
    assert shown.count("(see above)") == 3  # the data set, of the selection, the predictions and the teacher


def test_json_has_every_node_with_its_settings_and_is_stable(graph: Graph, artifacts: dict[str, Artifact]) -> None:
    read = json.loads(as_json(graph))
    assert read["root"] == artifacts["student-1"].key
    (teacher,) = [node for node in read["nodes"] if node["label"] == "teacher"]
    assert teacher["details"]["settings"] == {"value": 1, "accuracy": 0.8}
    graph.edges.reverse()
    assert as_json(graph) == json.dumps(read, indent=1)


def test_mermaid_has_an_arrow_for_each_edge(graph: Graph) -> None:
    text = as_mermaid(graph)
    assert text.startswith("flowchart LR\n")
    assert text.count("-->") == len(graph.edges) == 11


def test_text_from_data_cannot_leave_its_label() -> None:
    hostile = Graph("r", {"r": Node("r", "model", HOSTILE, HOSTILE)})
    tree, mermaid = as_tree(hostile), as_mermaid(hostile)
    assert "\x1b" not in tree + mermaid
    assert len(tree.splitlines()) == 1
    assert len(mermaid.splitlines()) == 2
    assert "<script" not in mermaid
    assert mermaid.count('"') == 2


def test_control_characters_are_shown_by_name() -> None:
    assert visible("a\x1b[2Jb\u202ec") == "a\\x1b[2Jb\\u202ec"


def test_a_changed_file_is_found_and_so_are_the_models_on_it(store: Store, artifacts: dict[str, Artifact]) -> None:
    assert verify(store) == []
    path = artifacts["select-1"].file("stats.json")
    path.write_text(path.read_text() + " ")
    (damage,) = verify(store)
    assert (damage.stage, damage.file) == ("select", "stats.json")
    assert damage.problem == "has changed since it was written"
    assert damage.models == (artifacts["student-1"].digest,)


def test_a_missing_file_of_the_data_rests_under_both_models(store: Store, artifacts: dict[str, Artifact]) -> None:
    artifacts["dataset"].file("info.json").unlink()
    (damage,) = verify(store)
    assert damage.problem == "is missing"
    assert set(damage.models) == {artifacts["teacher"].digest, artifacts["student-1"].digest}


def test_a_changed_manifest_does_not_hide_a_changed_file(store: Store, artifacts: dict[str, Artifact]) -> None:
    manifest = artifacts["teacher"].file("artifact.json")
    content = json.loads(manifest.read_text())
    content["files"]["model.json"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert {damage.file for damage in verify(store)} == {"artifact.json", "model.json"}


def test_only_what_the_root_rests_on_is_verified(store: Store, artifacts: dict[str, Artifact]) -> None:
    artifacts["evaluate-1"].file("metrics.json").unlink()
    assert verify(store, store_lineage(store, artifacts["student-1"])) == []
    assert len(verify(store)) == 1


def test_an_artifact_that_is_gone_is_named_missing(store: Store, artifacts: dict[str, Artifact]) -> None:
    store.quarantine("select", artifacts["select-1"].key)
    graph = store_lineage(store, artifacts["student-1"])
    assert "selection: select (missing)" in as_tree(graph)
    (damage,) = verify(store, graph)
    assert (damage.stage, damage.problem, damage.models) == ("select", "is missing", (artifacts["student-1"].digest,))


def test_models_made_from_the_teacher_are_found(store: Store, artifacts: dict[str, Artifact]) -> None:
    found = {one.key for one in resting_on(store, [artifacts["teacher"].key])}
    names = {name for name, one in artifacts.items() if one.key in found}
    assert names == {"teacher", "predict-1", "select-1", "student-1", "evaluate-teacher", "evaluate-1"}


def test_an_artifact_is_found_by_the_beginning_of_its_digest(store: Store, artifacts: dict[str, Artifact]) -> None:
    teacher = artifacts["teacher"]
    for name in (teacher.digest, teacher.digest[:10], teacher.key[:10], str(teacher.path)):
        assert find_artifact(store, name).key == teacher.key
    with pytest.raises(NotFound, match="no artifact 'nothing'"):
        find_artifact(store, "nothing")


def test_mlflow_alone_tells_the_same_lineage(
    workspace: Path, artifacts: dict[str, Artifact], graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(default_uri(workspace), workspace, ship=False)
    run = tracker.start_run("quickstart", {}, "")
    for name, artifact in artifacts.items():
        key = {"selftrain.key": artifact.key}
        tracker.finish_stage(tracker.start_stage(run, name, key), artifact)
        tracker.fail_stage(tracker.start_stage(run, f"{name}-failed", key), "an attempt that knew nothing")
    tracker.promote(run, artifacts["student-1"], 0.9, "quickstart")
    tracker.finish_run(run)
    tracker.close()
    uri = default_uri(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    Shipper(workspace, uri).ship_left(None)
    client = connect(uri, workspace)
    version = champion(client, "quickstart")
    assert version is not None
    told = mlflow_lineage(client, str(version.source).rsplit("/", 1)[-1])
    assert told.nodes[told.root].digest == artifacts["student-1"].digest
    models = {node.digest for node in told.nodes.values() if node.kind == "model"}
    assert models == {node.digest for node in graph.nodes.values() if node.kind == "model"}
    tables = {node.digest for node in told.nodes.values() if node.kind in ("selection", "predictions")}
    expected = {node.digest[:32] for node in graph.nodes.values() if node.kind in ("selection", "predictions")}
    assert tables == expected
    assert {node.digest for node in told.nodes.values() if node.label == "labeled"} == {"l" * 32}


@pytest.fixture
def run(workspace: Path, artifacts: dict[str, Artifact]) -> Run:
    """The record of a run that made these artifacts."""
    run = Run.create(workspace, RunConfig(name="tiny"))
    for order, (name, artifact) in enumerate(artifacts.items()):
        record = StageRecord(name, artifact.stage, "computed", order=order, round=int(name.endswith("-1")))
        run.record(replace(record, digest=artifact.digest, key=artifact.key, artifact=str(artifact.path)))
    return run


def test_a_sample_knows_its_teacher_its_label_and_its_student(run: Run, artifacts: dict[str, Artifact]) -> None:
    found = sample_lineage(run, "image-0")
    (first,) = found.rounds
    assert (first.teacher, first.student) == (artifacts["teacher"].digest, artifacts["student-1"].digest)
    assert (first.label, first.confidence, first.selected, first.copies) == ("cat", 0.9, True, 2)
    assert found.split == "unlabeled"
    assert "accepted; student" in sample_tree(found)
    assert "sees 2 copies" in sample_tree(found)


def test_a_correction_is_told_apart_from_the_model(run: Run) -> None:
    (first,) = sample_lineage(run, "image-1").rounds
    assert (first.label, first.chosen_label, first.source) == ("cat", "dog", "override")
    assert "accepted as dog (override)" in sample_tree(sample_lineage(run, "image-1"))


def test_a_sample_that_was_not_selected_or_not_readable_says_so(run: Run) -> None:
    assert "rejected" in sample_tree(sample_lineage(run, "image-3"))
    unreadable = sample_lineage(run, "image-5")
    assert (unreadable.rounds[0].error, unreadable.rounds[0].label) == ("truncated", None)
    assert "unreadable: truncated" in sample_tree(unreadable)


def test_an_unknown_sample_is_not_found(run: Run) -> None:
    with pytest.raises(NotFound, match="no sample 'image-77'"):
        sample_lineage(run, "image-77")
