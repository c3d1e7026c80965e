"""The sources `propagate` and `knn`: their formulas, their calibration, and the table that they make."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selftrain.flows.rounds.stages import predict_request, select_request
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.stored_features import StoredFeatures
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import execute
from selftrain.ssl_tasks.features import graph
from selftrain.ssl_tasks.features.graph import Diffusion, Nodes, Voting, neighbors_of
from selftrain.ssl_tasks.pseudo_labels.schema import Predictions
from selftrain.ssl_tasks.settings.pseudo_labels import GraphSettings, PredictSettings, SelectSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from tests.features.frozen import RUNTIME, features_of, opened
from tests.pseudo_labels.teachers import synthetic


def nodes_of(count: int, width: int = 6, classes: int = 3, labeled: int = 9, seed: int = 0) -> Nodes:
    """Clouds around a few directions; the first nodes are labelled, class by class."""
    random = np.random.default_rng(seed)
    centres = 2 * random.normal(size=(classes, width))
    points = (centres[np.arange(count) % classes] + random.normal(size=(count, width))).astype(np.float16)
    labels = np.where(np.arange(count) < labeled, np.arange(count) % classes, -1)
    ids = pa.chunked_array([pa.array([f"n{number}" for number in range(count)])])
    stored = StoredFeatures(Artifact(Path(), {}), "backbone", points, ids)
    return Nodes(stored, np.arange(count), labels, [f"n{number}" for number in range(labeled)], classes)


def test_scores_are_those_of_the_dense_formula(tmp_path: Path) -> None:
    """(I - αS)⁻¹ Y with S = D^-½ (A + Aᵀ) D^-½, by numpy's own inverse."""
    nodes = nodes_of(30)
    settings = GraphSettings(neighbors=4, alpha=0.8, power=2, balance=False)
    unit = nodes.vectors(slice(None)).double().numpy()
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    edges = np.zeros((30, 30))
    for row in range(30):
        nearest = np.argsort(-similarity[row])[:4]
        edges[row, nearest] = np.maximum(similarity[row, nearest], 0) ** 2
    both = edges + edges.T
    scale = np.sqrt(both.sum(axis=1))
    seeds = np.stack([(nodes.labels == number) / (nodes.labels == number).sum() for number in range(3)], axis=1)
    scores = np.linalg.inv(np.eye(30) - 0.8 * both / scale / scale[:, None]) @ seeds
    found = Diffusion(nodes, settings, tmp_path)(nodes.labels)
    assert np.allclose(found, scores / scores.sum(axis=1, keepdims=True), atol=1e-4)


def test_balance_gives_each_class_its_share_of_the_labelled_images(tmp_path: Path) -> None:
    nodes = nodes_of(60)
    few = np.where(np.isin(np.arange(60), [0, 3, 6, 1, 4, 2]), nodes.labels, -1)  # 3, 2 and 1 of the classes
    found = Diffusion(nodes, GraphSettings(neighbors=4), tmp_path)(few)
    assert np.allclose(found.mean(axis=0), [3 / 6, 2 / 6, 1 / 6], atol=0.02)


def test_a_vote_counts_the_nearest_labelled_images_but_never_the_image_itself() -> None:
    nodes = nodes_of(20)
    found = Voting(nodes, GraphSettings(neighbors=2, power=1))(nodes.labels)
    unit = nodes.vectors(slice(None)).numpy()
    for number in (3, 15):  # a labelled image and another
        near = unit[:9] @ unit[number]
        if number < 9:
            near[number] = 0
        voters = np.argsort(-near)[:2]
        votes = np.bincount(nodes.labels[voters], np.maximum(near[voters], 0), 3)
        assert np.allclose(found[number], (votes / votes.sum() + 1e-3) / 1.003, atol=1e-3)


def test_the_index_finds_what_all_pairs_find_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = nodes_of(1_500, width=24)
    exact, near = neighbors_of(nodes, 10)
    monkeypatch.setattr(graph, "EXACT", 0)
    (similarity, index), (_, again) = neighbors_of(nodes, 10), neighbors_of(nodes, 10)
    assert np.array_equal(index, again)
    assert not (index == np.arange(1_500)[:, None]).any(), "no image is its own neighbour"
    shared = [len(set(one) & set(other)) for one, other in zip(index.tolist(), near.tolist(), strict=True)]
    assert np.mean(shared) > 9.7
    assert np.allclose(similarity[:, 0], exact.max(axis=1), atol=5e-3)


def test_a_killed_attempt_finds_its_neighbours_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = nodes_of(50)
    first = Diffusion(nodes, GraphSettings(), tmp_path)(nodes.labels)

    def refuse(*_: Any) -> None:
        raise AssertionError("the graph was searched again")

    monkeypatch.setattr(graph, "neighbors_of", refuse)
    assert np.array_equal(Diffusion(nodes, GraphSettings(), tmp_path)(nodes.labels), first)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, Artifact]:
    """A workspace with a data set and its features."""
    workspace = tmp_path_factory.mktemp("workspace")
    dataset = synthetic(workspace, size=400, labels_per_class=8)
    return workspace, dataset, features_of(workspace, dataset)


def asked(workspace: Path, dataset: Artifact, features: Artifact, **settings: Any) -> Artifact:
    wanted = PredictSettings.model_validate({"shard_size": 100, **settings})
    return execute(predict_request("predict", wanted, dataset, [], [features]), workspace, RUNTIME).artifact


@pytest.mark.parametrize("source", ["propagate", "knn"])
def test_the_table_is_one_of_predictions_that_a_selection_reads(
    prepared: tuple[Path, Artifact, Artifact], source: str
) -> None:
    workspace, dataset, features = prepared
    made = asked(workspace, dataset, features, source=source)
    described = Predictions.open(made.path)
    pool = Dataset.open(dataset, workspace / "cache", RUNTIME).pool("unlabeled")
    rows = [row for file in described.files for row in pq.read_table(file).to_pylist()]
    assert [row["sample_id"] for row in rows] == pool.sample_ids()
    assert all(abs(sum(row["probs"]) - 1) < 5e-3 for row in rows)
    wanted = SelectSettings(threshold=None, top_k=10, balance="none")
    selection = execute(select_request("select", wanted, dataset, made, None), workspace, RUNTIME).artifact
    assert selection.summary["kept"] == 40
    assert made.summary["computed_by"] == {"source": source}


def test_confidence_is_fitted_on_one_half_of_validation(prepared: tuple[Path, Artifact, Artifact]) -> None:
    import json

    workspace, dataset, features = prepared
    made = asked(workspace, dataset, features, source="propagate")
    report = json.loads(made.file("calibration.json").read_text())
    assert report["fitted_on"] > 10
    assert report["after"]["images"] > 10
    assert report["temperature"] != 1
    held = pq.read_table(made.file("validation.parquet")).to_pylist()
    gap = np.mean([row["confidence"] for row in held]) - np.mean([row["label"] == row["truth"] for row in held])
    assert abs(gap) < 0.15, "where it says 60 %, about 60 % are right"


def test_validation_labels_take_no_part(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, features = prepared
    nodes = Nodes.of(Dataset.open(dataset, workspace / "cache", RUNTIME), opened(workspace, features))
    assert (nodes.labels >= 0).sum() == 4 * 8
    assert len(nodes.rows) == len(np.unique(nodes.rows))


def test_without_validation_labelled_images_are_left_out_in_turn(tmp_path: Path) -> None:
    dataset = synthetic(tmp_path, size=200, labels_per_class=6, validation=0)
    made = asked(tmp_path, dataset, features_of(tmp_path, dataset), source="propagate")
    assert made.summary["temperature"] not in (1.0, 0.0)


def test_one_label_a_class_without_validation_is_not_calibrated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = synthetic(tmp_path, size=200, labels_per_class=1, validation=0)
    made = asked(tmp_path, dataset, features_of(tmp_path, dataset), source="knn")
    assert made.summary["temperature"] == 1
    assert "confidence is not calibrated" in caplog.text


def test_no_label_at_all_is_refused(prepared: tuple[Path, Artifact, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, dataset, features = prepared
    found = Dataset.open(dataset, workspace / "cache", RUNTIME)
    empty = found.pool("test")
    empty._positions = empty._positions[:0]
    monkeypatch.setattr(Dataset, "pool", lambda self, name: empty)
    with pytest.raises(ConfigError, match="needs labelled images"):
        Nodes.of(found, opened(workspace, features))
