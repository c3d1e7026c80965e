"""Accuracy and its interval, per class scores, likelihood, Brier, bootstrap intervals."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as reference

from selftrain.ssl_tasks.evaluation.metrics import (
    balanced_accuracy,
    bootstrap_intervals,
    brier_scores,
    class_scores,
    confusion_matrix,
    log_losses,
    measure,
    wilson_interval,
)

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of three classes that know something of their labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=400)
    return softmax(generator.normal(size=(400, 3)) + 1.5 * np.eye(3)[labels], axis=1), labels


def test_wilson_interval_of_the_textbook() -> None:
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


def test_wilson_interval_stays_within_zero_and_one_and_is_wide_for_few() -> None:
    assert wilson_interval(5, 5) == pytest.approx((0.5655, 1.0), abs=1e-4)
    assert wilson_interval(0, 5)[0] == 0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_scores_agree_with_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = drawn
    predicted = probs.argmax(axis=1)
    found = measure(probs, labels, CLASSES, resamples=0)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    assert found["nll"] == pytest.approx(reference.log_loss(labels, probs))
    recall = reference.recall_score(labels, predicted, average=None)
    precision = reference.precision_score(labels, predicted, average=None)
    assert [one["recall"] for one in found["per_class"]] == pytest.approx(recall)
    assert [one["precision"] for one in found["per_class"]] == pytest.approx(precision)
    expected = reference.confusion_matrix(labels, predicted)
    assert (confusion_matrix(labels, predicted, 3) == expected).all()


def test_brier_by_hand() -> None:
    probs = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert brier_scores(probs, np.array([0, 0])) == pytest.approx([0.25 + 0.25, 2.0])


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    assert np.isfinite(log_losses(np.array([[1.0, 0.0]]), np.array([1]))).all()


def test_classes_that_never_occur_have_no_recall_and_do_not_count_in_the_balance() -> None:
    confusion = confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    scores = class_scores(confusion, CLASSES)
    assert scores[2] == {"class": "owl", "count": 0, "predicted": 0, "recall": None, "precision": None}
    assert balanced_accuracy(confusion) == pytest.approx(0.75)


def test_an_empty_split_measures_nothing() -> None:
    assert measure(np.empty((0, 3)), np.empty(0, np.int64), CLASSES) == {"count": 0}


def test_bootstrap_intervals_hold_the_value_and_shrink_with_more_images(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = drawn
    found = measure(probs, labels, CLASSES, resamples=300)
    for name in ("balanced_accuracy", "nll", "brier"):
        assert found["intervals"][name]["low"] < found[name] < found["intervals"][name]["high"]
    few = bootstrap_intervals(probs[:40], labels[:40], 300, seed=0)
    width = {name: one["high"] - one["low"] for name, one in found["intervals"].items()}
    assert all(few[name]["high"] - few[name]["low"] > width[name] for name in width)


def test_bootstrap_interval_of_the_mean_loss_is_the_normal_one(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = drawn
    losses = log_losses(probs, labels)
    half = 1.96 * losses.std() / np.sqrt(len(losses))
    interval = bootstrap_intervals(probs, labels, 2_000, seed=0)["nll"]
    assert interval["high"] - interval["low"] == pytest.approx(2 * half, rel=0.1)
