"""Temperature scaling (Guo et al., 1706.04599): one number that makes confidence mean what it says."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Floats = NDArray[np.float64]

COLDEST, HOTTEST = 0.05, 20.0
BINS = 15  # of the expected calibration error


def fitting_half(sample_ids: list[str]) -> NDArray[np.bool_]:
    """Selects, by id, the validation images on which the temperature is fitted; thresholds are chosen on the others."""
    bits = [hashlib.sha256(f"temperature:{sample}".encode()).digest()[0] & 1 for sample in sample_ids]
    return np.array(bits, bool)


def fit_temperature(log_probs: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature of the least negative log-likelihood, to four digits."""

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(log_softmax(log_probs / np.exp(log_temperature), axis=1), labels)

    best = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-6})
    return float(f"{np.exp(best.x):.4g}")


def negative_log_likelihood(log_probs: Floats, labels: NDArray[np.int64]) -> float:
    """Mean over the images."""
    return float(-log_probs[np.arange(len(labels)), labels].mean())


def calibration(log_probs: Floats, labels: NDArray[np.int64], temperature: float) -> dict[str, Any]:
    """Measures how well confidence and accuracy agree at a temperature; empty without images."""
    if not len(labels):
        return {"images": 0}
    tempered = log_softmax(log_probs / temperature, axis=1)
    confidence = np.exp(tempered.max(axis=1))
    correct = tempered.argmax(axis=1) == labels
    return {
        "images": len(labels),
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidence.mean()),
        "nll": negative_log_likelihood(tempered, labels),
        "ece": expected_calibration_error(confidence, correct),
    }


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Mean distance of accuracy and confidence over bins of equal width, weighted by their images."""
    number = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(number, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gap).sum() / len(confidence))
