"""Logistic regression on stored features: its formula, its choices, and the model that it makes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from selftrain.flows.rounds.stages import evaluate_request, predict_request, select_request
from selftrain.ssl_tasks.data.dataset import Dataset, Pool
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.evaluation.metrics import measure
from selftrain.ssl_tasks.execution.stage import execute
from selftrain.ssl_tasks.features.linear import (
    PENALTIES,
    USUAL_PENALTY,
    Examples,
    Search,
    fit,
    folds_of,
    left_out_logits,
    refuse_or_warn,
    regress,
)
from selftrain.ssl_tasks.pseudo_labels.engine import open_duckdb
from selftrain.ssl_tasks.pseudo_labels.schema import Predictions
from selftrain.ssl_tasks.settings.methods import LinearSettings
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings, SelectSettings
from selftrain.ssl_tasks.settings.run_config import EvaluateSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.export import export_model
from selftrain.ssl_tasks.trained.model import load_trained
from tests.features.frozen import RUNTIME, features_of, linear, opened
from tests.pseudo_labels.teachers import synthetic, teacher

CLASSES = 3


def drawn(count: int, width: int = 5, seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, np.ndarray]:
    """Three clouds of points that overlap."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    centres = np.random.default_rng(99).normal(size=(CLASSES, width))
    points = centres[labels] + scale * random.normal(size=(count, width))
    return torch.from_numpy(points).double(), labels


def examples_of(features: torch.Tensor, labels: np.ndarray, classes: int = CLASSES) -> Examples:
    return Examples(
        features,
        torch.eye(classes, dtype=features.dtype)[torch.from_numpy(labels)],
        torch.ones(len(labels)).to(features),
    )


@pytest.mark.parametrize("penalty", [1.0, 0.01])
@pytest.mark.parametrize(("count", "width"), [(200, 5), (20, 50)])
def test_it_is_scikit_learns_regression(penalty: float, count: int, width: int) -> None:
    features, labels = drawn(count, width)
    expected = LogisticRegression(C=1 / (penalty * count), tol=1e-10, max_iter=10_000).fit(features.numpy(), labels)
    search = Search(examples_of(features, labels))
    head = search.outside(fit(search.inside, penalty, tolerance=1e-14))
    found = torch.softmax(head(features), dim=1).numpy()
    assert np.allclose(found, expected.predict_proba(features.numpy()), atol=1e-4)


def test_at_its_end_the_slope_is_nothing() -> None:
    """∂/∂W of the formula in the module's docstring, written out once more."""
    features, _ = drawn(150)
    soft = torch.softmax(torch.randn(150, CLASSES, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    weights = torch.linspace(0.1, 2, 150).double()
    head = fit(Examples(features, soft, weights), 0.1, tolerance=1e-14)
    probs = torch.softmax(features @ head.weight + head.bias, dim=1)
    error = (weights / weights.sum())[:, None] * (probs - soft)
    assert (features.T @ error + 0.1 * head.weight).abs().max() < 1e-5
    assert error.sum(dim=0).abs().max() < 1e-5


def test_soft_targets_are_weighted_hard_ones() -> None:
    features, _ = drawn(60)
    soft = torch.softmax(torch.randn(60, CLASSES, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    once = fit(Examples(features, soft, torch.ones(60).double()), 0.1, tolerance=1e-14)
    repeated = examples_of(features.repeat(CLASSES, 1), np.repeat(np.arange(CLASSES), 60))
    hard = fit(Examples(repeated.features, repeated.targets, soft.T.reshape(-1)), 0.1, tolerance=1e-14)
    assert torch.allclose(once.weight, hard.weight, atol=1e-5)


def test_balanced_classes_weigh_alike_as_scikit_learns_do() -> None:
    features, labels = drawn(200)
    kept = np.flatnonzero((labels != 2) | (np.arange(200) % 10 == 0))
    features, labels = features[torch.from_numpy(kept)], labels[kept]
    model = LogisticRegression(C=1 / (0.1 * len(kept)), class_weight="balanced", tol=1e-10, max_iter=10_000)
    expected = model.fit(features.numpy(), labels).predict_proba(features.numpy())
    head = fit(examples_of(features, labels).balanced(), 0.1, tolerance=1e-14)
    assert np.allclose(torch.softmax(head(features), dim=1).numpy(), expected, atol=1e-4)


def chosen(count: int, held: int, **settings: Any) -> Any:
    features, labels = drawn(count, 40, scale=2.0)
    held_features, held_labels = drawn(max(held, 1), 40, seed=5, scale=2.0)
    return regress(
        LinearSettings.model_validate({"name": "linear", **settings}),
        examples_of(features.float(), labels),
        held_features.float()[:held],
        held_labels[:held],
        [str(number) for number in range(count)],
        labels,
    )


def test_validation_chooses_the_penalty_and_the_temperature() -> None:
    found = chosen(60, 300)
    assert found.chosen_on == "validation"
    assert found.chosen.nll == min(one.nll for one in found.tried)
    assert len(found.tried) > 1
    held, labels = drawn(300, 40, seed=5, scale=2.0)
    probs = torch.softmax(found.head(held.float()), dim=1).numpy()
    as_it_is = measure(probs, labels, ("a", "b", "c"), 0)["nll"]
    colder, hotter = (
        measure(torch.softmax(found.head(held.float()) * factor, dim=1).numpy(), labels, ("a", "b", "c"), 0)["nll"]
        for factor in (1.3, 0.75)
    )
    assert as_it_is < min(colder, hotter), "the temperature is a part of the weights"


def test_without_validation_images_are_left_out_in_turn() -> None:
    found = chosen(60, 0)
    assert found.chosen_on == "cross-validation"
    assert [one.penalty for one in found.tried] == list(PENALTIES)


def test_a_given_penalty_is_used() -> None:
    assert chosen(60, 100, penalty=0.3).chosen.penalty == 0.3


def test_left_out_logits_come_from_the_other_folds_alone() -> None:
    features, labels = drawn(40)
    fold = folds_of([str(number) for number in range(40)], labels)
    assert np.bincount(fold).tolist() == [8] * 5
    assert all(len(np.unique(fold[labels == label])) == 5 for label in range(CLASSES))
    examples = examples_of(features.float(), labels)
    before = left_out_logits(examples, fold, (0.1,))[0]
    wrong = labels.copy()
    wrong[fold == 2] = 0  # labels of one fold do not change what is said of it
    after = left_out_logits(examples_of(features.float(), wrong), fold, (0.1,))[0]
    assert torch.allclose(before[fold == 2], after[fold == 2], atol=1e-4)
    assert not torch.allclose(before[fold != 2], after[fold != 2], atol=1e-2)


def test_one_image_a_class_takes_the_usual_penalty() -> None:
    features, labels = torch.eye(3), np.arange(3)
    held = torch.empty(0, 3), np.empty(0, np.int64)
    found = regress(LinearSettings(), examples_of(features, labels), *held, ["a", "b", "c"], labels)
    assert (found.chosen, found.chosen_on) == (None, "nothing")
    expected = regress(
        LinearSettings(penalty=USUAL_PENALTY),
        examples_of(features, labels),
        *held,
        ["a", "b", "c"],
        labels,
    )
    assert torch.equal(found.head.weight, expected.head.weight)


def test_a_class_without_images_is_never_predicted() -> None:
    features, labels = drawn(50)
    head = fit(examples_of(features, labels, classes=5), 0.1)
    probs = torch.softmax(head(features), dim=1)
    assert torch.isfinite(probs).all()
    assert probs[:, 3:].max() < 1e-4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, Artifact, Artifact]:
    """A workspace with a data set, its features and a linear model of them."""
    workspace = tmp_path_factory.mktemp("workspace")
    dataset = synthetic(workspace, size=400, labels_per_class=8)
    features = features_of(workspace, dataset)
    return workspace, dataset, features, linear(workspace, dataset, features)


def test_its_artifact_is_a_whole_model(prepared: tuple[Path, Artifact, Artifact, Artifact], tmp_path: Path) -> None:
    workspace, dataset, features, model = prepared
    trained, stored = load_trained(model.path, "cpu"), opened(workspace, features)
    pool = Dataset.open(dataset, workspace / "cache", RUNTIME).pool("validation")
    by_network = trained.logits(pool.images(np.arange(len(pool))))
    by_features = trained.logits_of(stored.matrix[stored.rows(pool.column("sample_id"))])
    assert torch.allclose(by_network, by_features, atol=0.02)
    accuracy = float((by_features.argmax(1).numpy() == pool.labels).mean())
    assert model.summary["validation_accuracy"] == pytest.approx(accuracy)
    assert export_model(model.path, tmp_path / "model.pt2", "torch") < 1e-4
    assert set(json.loads(model.file("metrics.json").read_text())) >= {"penalty", "temperature", "tried", "backbone"}


def test_the_same_question_has_the_same_bytes(
    prepared: tuple[Path, Artifact, Artifact, Artifact], tmp_path: Path
) -> None:
    _, _, _, model = prepared
    dataset = synthetic(tmp_path, size=400, labels_per_class=8)
    again = linear(tmp_path, dataset, features_of(tmp_path, dataset))
    assert (again.key, again.digest) == (model.key, model.digest)


def test_new_unlabelled_images_do_not_fit_it_again(prepared: tuple[Path, Artifact, Artifact, Artifact]) -> None:
    workspace, dataset, _, model = prepared
    more = {**dataset.parts, "unlabeled": "others"}
    assert linear(workspace, Artifact(dataset.path, {**dataset.manifest, "parts": more}), prepared[2]).key == model.key


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stage may look at an image."""

    def refuse(self: Pool, index: np.ndarray) -> np.ndarray:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Pool, "images", refuse)


@pytest.mark.usefixtures("blind")
def test_predicting_and_evaluating_read_the_stored_features_alone(
    prepared: tuple[Path, Artifact, Artifact, Artifact],
) -> None:
    workspace, dataset, features, model = prepared
    request = predict_request("predict", PredictSettings(), dataset, [model], [features])
    predictions = execute(request, workspace, RUNTIME).artifact
    assert predictions.summary["images"] > 300
    measured = execute(
        evaluate_request("e", EvaluateSettings(bootstrap=0), dataset, model, features), workspace, RUNTIME
    )
    assert measured.artifact.summary["validation_accuracy"] == pytest.approx(model.summary["validation_accuracy"])
    assert predictions.manifest["inputs"]["features"]["digest"] == features.digest


def test_stored_features_and_the_network_give_the_same_labels(
    prepared: tuple[Path, Artifact, Artifact, Artifact],
) -> None:
    workspace, dataset, features, model = prepared
    tables = []
    for read in ([features], []):
        request = predict_request("predict", PredictSettings(), dataset, [model], read)
        made = Predictions.open(execute(request, workspace, RUNTIME).artifact.path)
        with open_duckdb(workspace / "duckdb") as connection:
            tables.append(
                connection.execute(f"SELECT label, confidence FROM {made.table()} ORDER BY sample_id").fetchnumpy()
            )
    assert (tables[0]["label"] == tables[1]["label"]).mean() > 0.99
    assert np.allclose(tables[0]["confidence"], tables[1]["confidence"], atol=0.02)


@pytest.mark.parametrize("soft", [True, False])
def test_a_student_learns_the_selected_pseudo_labels_too(
    prepared: tuple[Path, Artifact, Artifact, Artifact], soft: bool
) -> None:
    workspace, dataset, features, model = prepared
    request = predict_request("predict", PredictSettings(), dataset, [model], [features])
    predictions = execute(request, workspace, RUNTIME).artifact
    wanted = SelectSettings(threshold=0.4, soft=soft, balance="none")
    selection = execute(select_request("select", wanted, dataset, predictions, None), workspace, RUNTIME).artifact
    student = linear(workspace, dataset, features, selection)
    assert student.summary["images"] == 4 * 8 + selection.summary["kept"]
    assert student.digest != model.digest
    ignored = linear(workspace, dataset, features, selection, weight=0.0)
    ours, theirs = (load_trained(one.path, "cpu").network.head.weight for one in (ignored, model))
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9


def test_features_of_another_backbone_are_refused(
    prepared: tuple[Path, Artifact, Artifact, Artifact], tmp_path: Path
) -> None:
    workspace, dataset, _, model = prepared
    other = features_of(workspace, dataset, init=teacher(tmp_path / "teacher", seed=7))
    with pytest.raises(ConfigError, match="was fitted on features of the backbone"):
        execute(predict_request("predict", PredictSettings(), dataset, [model], [other]), workspace, RUNTIME)


def test_labels_of_one_class_alone_are_refused(prepared: tuple[Path, Artifact, Artifact, Artifact]) -> None:
    with pytest.raises(ConfigError, match=r"all 3 of class 'cat' .* two classes or more"):
        refuse_or_warn(np.zeros(3, np.int64), ("cat", "dog"))
    with pytest.raises(ConfigError, match="found none"):
        refuse_or_warn(np.zeros(0, np.int64), ("cat", "dog"))
    assert refuse_or_warn(np.array([0, 1]), ("cat", "dog", "emu")) == [
        "no labelled image of class emu: it is never predicted"
    ]
