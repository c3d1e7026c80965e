"""Losses for long-tailed labels, and temperatures for flat predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selftrain.models.classifier import joined
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.stream import logit_offsets
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.methods import method_class
from selftrain.ssl_tasks.methods.base import adjusted, labeled_cross_entropy
from selftrain.ssl_tasks.methods.table import METHODS
from selftrain.ssl_tasks.settings.methods import FixMatchSettings, FlexMatchSettings, UDASettings
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.model import load_trained
from selftrain.ssl_tasks.training.run import build_run
from tests.methods.trial import Trial, batch_of, pixel_batch, pixel_student, pixels, settings_of
from tests.training.small_runs import digits, learner, train_in

COUNTS = np.array([90, 9, 0])


def test_offsets_are_the_log_of_the_labels_shares() -> None:
    balanced = logit_offsets(COUNTS, TrainSettings(loss="balanced_softmax"))
    assert balanced == pytest.approx(np.log([90 / 99, 9 / 99, 0.5 / 99]))
    twice = logit_offsets(COUNTS, TrainSettings(loss="logit_adjusted", adjustment=2.0))
    assert twice == pytest.approx(2 * np.log([90 / 99, 9 / 99, 0.5 / 99]))
    assert logit_offsets(COUNTS, TrainSettings()) is None


def test_the_balanced_softmax_is_its_papers_formula() -> None:
    logits, labels, counts = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]), [1, 0], torch.tensor([6.0, 3.0, 1.0])
    offsets = torch.log(counts / counts.sum()).repeat(2, 1)
    batch = type(pixel_batch([], [], []))((logits,), torch.tensor(labels), torch.arange(2), label_offsets=offsets)
    weighted = counts * logits.exp()
    expected = -torch.log(weighted[torch.arange(2), labels] / weighted.sum(dim=1)).mean()
    assert labeled_cross_entropy(logits, batch).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_adjusts_its_labelled_loss_or_refuses_to(tmp_path: Path, dataset: Artifact, method: str) -> None:
    section = learner({"name": method}, loss="balanced_softmax", steps=1)
    if method_class(method).mixes_labels:
        with pytest.raises(ConfigError, match=f"{method} has a loss of its own for labelled images"):
            build_run(section, Dataset.open(dataset, tmp_path), 0, torch.device("cpu"))
        return
    trial = Trial(settings_of(method))
    plain = batch_of(trial.method.views)
    offsets = torch.tensor([0.0, 3.0, -3.0, 1.0]).repeat(len(plain.labels), 1)
    changed = type(plain)(**{**vars(plain), "label_offsets": offsets})
    one, other = (Trial(settings_of(method)).step(0, batch).logs["supervised"] for batch in (plain, changed))
    assert one != other


def test_labels_of_another_kind_of_unit_are_not_adjusted(tmp_path: Path, dataset: Artifact) -> None:
    section = learner({"name": "pseudo_label", "units": "sigmoid"}, loss="balanced_softmax")
    with pytest.raises(ConfigError, match="pseudo_label has a loss of its own"):
        build_run(section, Dataset.open(dataset, tmp_path), 0, torch.device("cpu"))


def test_rare_classes_are_found_more_often_with_an_adjusted_loss(tmp_path: Path) -> None:
    tailed = digits(tmp_path / "tailed", labels_per_class=60, strategy="long_tailed", imbalance=60)
    recalls = {}
    for loss in ("cross_entropy", "balanced_softmax"):
        section = learner(steps=150, batch_size=32, learning_rate=0.1, evaluate_every=150, loss=loss, keep="last")
        model = train_in(tmp_path / loss, section, {"dataset": tailed})
        pool = Dataset.open(tailed, tmp_path / "tailed" / "cache").pool("validation")
        found = load_trained(model.path, "cpu").logits(pool.images(np.arange(len(pool)))).argmax(1).numpy()
        recalls[loss] = np.mean([(found[pool.labels == one] == one).mean() for one in range(10)])
    assert recalls["balanced_softmax"] > recalls["cross_entropy"] + 0.02


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"loss": "balanced_softmax", "class_balanced": True}, "both correct for imbalanced labels"),
        ({"loss": "logit_adjusted", "class_weights": "inverse"}, "both correct for imbalanced labels"),
        ({"adjustment": 2.0}, "adjustment is 2, and loss: cross_entropy has none"),
    ],
)
def test_imbalance_is_corrected_once(train: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainSettings(**train)


@pytest.mark.parametrize("method", ["supervised", "dividemix"])
def test_the_temperature_of_training_becomes_part_of_the_head(tmp_path: Path, dataset: Artifact, method: str) -> None:
    section = learner({"name": method}, temperature=0.25, keep="last")
    model = train_in(tmp_path, section, {"dataset": dataset})
    pool = Dataset.open(dataset, tmp_path / "cache").pool("validation")
    logits = load_trained(model.path, "cpu").logits(pool.images(np.arange(len(pool))))
    loss = F.cross_entropy(logits, torch.from_numpy(pool.labels)).item()
    assert loss == pytest.approx(model.summary["last"]["loss"], rel=1e-4)


def test_networks_side_by_side_keep_the_temperature() -> None:
    one = pixel_student()
    one.head.temperature = 0.5
    images = pixels((1.0, 2.0, 3.0, 4.0))
    assert torch.equal(joined([one, one])(images), one(images))
    assert torch.equal(one(images), torch.tensor([[2.0, 4.0, 6.0, 8.0]]))


@pytest.mark.parametrize("kind", [FixMatchSettings, UDASettings])
def test_flat_predictions_pass_the_threshold_at_a_confidence_temperature(kind: Any) -> None:
    flat = pixels((0.4, 0.0, 0.0, 0.0), (0.0, 0.4, 0.0, 0.0))
    batch = pixel_batch([pixels((1.0, 0.0, 0.0, 0.0))], [0], [flat, flat])
    masks = {}
    for temperature in (1.0, 0.05):
        trial = Trial(kind(threshold=0.8, confidence_temperature=temperature), student=pixel_student())
        masks[temperature] = trial.method.loss(trial.student, batch, 0.5).logs["mask"].item()
    assert masks == {1.0: 0.0, 0.05: 1.0}


def test_flexmatch_remembers_flat_predictions_at_a_confidence_temperature() -> None:
    flat = pixels((0.4, 0.0, 0.0, 0.0), (0.0, 0.4, 0.0, 0.0))
    batch = pixel_batch([pixels((1.0, 0.0, 0.0, 0.0))], [0], [flat, flat])
    remembered = {}
    for temperature in (1.0, 0.05):
        settings = FlexMatchSettings(threshold=0.8, confidence_temperature=temperature)
        trial = Trial(settings, student=pixel_student())
        trial.method.loss(trial.student, batch, 0.5)
        remembered[temperature] = trial.method.remembered[:2].tolist()
    assert remembered == {1.0: [-1, -1], 0.05: [0, 1]}


def test_without_offsets_the_logits_are_the_same_tensor() -> None:
    logits = torch.zeros(1, 4)
    assert adjusted(logits, pixel_batch([logits], [0], [])) is logits
