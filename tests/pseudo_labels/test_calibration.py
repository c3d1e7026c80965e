"""Temperature scaling, reliability bins and the expected calibration error, on numbers whose answer is known."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from selftrain.ssl_tasks.pseudo_labels.calibration import (
    LOG_RANGE_OF_TEACHERS,
    calibration,
    expected_calibration_error,
    fit_temperature,
    fitting_half,
    negative_log_likelihood,
    reliability_bins,
)


def overconfident(temperature: float, images: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits `temperature` times as large as those that the labels were drawn from."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(images, 5)) * 2
    labels = (np.exp(log_softmax(logits, axis=1)).cumsum(1) > random.random((images, 1))).argmax(1)
    return log_softmax(logits * temperature, axis=1), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_is_the_true_one(temperature: float) -> None:
    assert fit_temperature(*overconfident(temperature), LOG_RANGE_OF_TEACHERS) == pytest.approx(temperature, rel=0.05)


def test_after_fitting_confidence_is_accuracy() -> None:
    log_probs, labels = overconfident(3.0)
    before, after = (calibration(log_probs, labels, temperature) for temperature in (1.0, 3.0))
    assert after["accuracy"] == before["accuracy"]
    assert after["ece"] < 0.005 < 0.1 < before["ece"]
    assert after["nll"] < before["nll"]


def test_calibration_error_by_hand() -> None:
    # Two images of the bin around 0.9, one right: |1.8 - 1| ÷ 3; one of the bin around 0.6, right: |0.6 - 1| ÷ 3.
    log_probs = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
    report = calibration(log_probs, np.array([0, 1, 1]), 1.0)
    assert report["ece"] == pytest.approx((0.8 + 0.4) / 3)
    assert report["ece"] == pytest.approx(expected_calibration_error(np.exp(log_probs), [0, 1, 1]))


def test_likelihood_by_hand() -> None:
    log_probs = np.log(np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert negative_log_likelihood(log_probs, np.array([1, 0])) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)


def test_the_fitting_half_is_a_matter_of_each_id_alone() -> None:
    ids = [f"image-{number}" for number in range(2000)]
    half = fitting_half(ids)
    assert 0.45 < half.mean() < 0.55
    assert (fitting_half(ids[::-1]) == half[::-1]).all()


def test_nothing_to_measure_on_is_not_an_error() -> None:
    assert calibration(np.empty((0, 3)), np.empty(0, np.int64), 1.0) == {"images": 0}


def test_error_of_a_hand_computed_example() -> None:
    probs = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]
    labels = [0, 1, 1, 1]
    # Ten bins: two at .9 (accuracy .5), one at .6 (1), one at .7 (1).
    expected = (2 * 0.4 + 0.4 + 0.3) / 4
    assert expected_calibration_error(probs, labels, bins=10) == pytest.approx(expected)


def test_certain_and_right_is_perfectly_calibrated() -> None:
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0


def test_bins_count_every_row_once_and_hold_their_bounds() -> None:
    probs = softmax(np.random.default_rng(0).normal(size=(500, 4)) * 3, axis=1)
    bins = reliability_bins(probs, np.zeros(500, int), bins=10)
    assert sum(one["count"] for one in bins) == 500
    assert all(one["lower"] < one["confidence"] <= one["upper"] + 1e-12 for one in bins if one["count"])
    assert bins[0]["confidence"] is None  # four classes: no confidence below .25


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_of_drawn_labels_is_found_again(temperature: float) -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(20_000, 5)) * 2
    chances = softmax(logits / temperature, axis=1)
    labels = (chances.cumsum(axis=1) < generator.random((20_000, 1))).sum(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_temperature_lowers_the_error_of_an_overconfident_model() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(5_000, 5))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < generator.random((5_000, 1))).sum(axis=1)
    hot = logits * 4
    fitted = fit_temperature(hot, labels)
    before = expected_calibration_error(softmax(hot, axis=1), labels)
    assert expected_calibration_error(softmax(hot / fitted, axis=1), labels) < before / 5


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.ones((4, 3))])
def test_temperature_of_nothing_is_one(logits: np.ndarray) -> None:
    assert fit_temperature(logits, np.zeros(len(logits), int)) == 1.0
