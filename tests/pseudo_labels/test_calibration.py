"""Temperature scaling on numbers whose right temperature is known."""

import numpy as np
import pytest
from scipy.special import log_softmax

from selftrain.ssl_tasks.pseudo_labels.calibration import (
    calibration,
    expected_calibration_error,
    fit_temperature,
    fitting_half,
    negative_log_likelihood,
)


def overconfident(temperature: float, images: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits `temperature` times as large as those that the labels were drawn from."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(images, 5)) * 2
    labels = (np.exp(log_softmax(logits, axis=1)).cumsum(1) > random.random((images, 1))).argmax(1)
    return log_softmax(logits * temperature, axis=1), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_is_the_true_one(temperature: float) -> None:
    assert fit_temperature(*overconfident(temperature)) == pytest.approx(temperature, rel=0.05)


def test_after_fitting_confidence_is_accuracy() -> None:
    log_probs, labels = overconfident(3.0)
    before, after = (calibration(log_probs, labels, temperature) for temperature in (1.0, 3.0))
    assert after["accuracy"] == before["accuracy"]
    assert after["ece"] < 0.005 < 0.1 < before["ece"]
    assert after["nll"] < before["nll"]


def test_calibration_error_by_hand() -> None:
    # Two images of the bin around 0.9, one right: |1.8 - 1| ÷ 3; one of the bin around 0.5, right: |0.5 - 1| ÷ 3.
    error = expected_calibration_error(np.array([0.9, 0.9, 0.5]), np.array([True, False, True]))
    assert error == pytest.approx((0.8 + 0.5) / 3)


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
