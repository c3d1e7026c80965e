"""Expected calibration error, reliability bins and the fitted temperature."""

import numpy as np
import pytest
from scipy.special import softmax

from selftrain.ssl_tasks.evaluation.calibration import expected_calibration_error, fit_temperature, reliability_bins


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
