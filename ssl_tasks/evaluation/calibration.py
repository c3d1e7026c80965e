"""Measures calibration: expected calibration error, reliability bins, and one fitted temperature."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15
LOG_RANGE = (-5.0, 5.0)  # temperatures from 0.0067 to 148; beyond, probabilities are practically one-hot or uniform


def reliability_bins(probs: ArrayLike, labels: ArrayLike, bins: int = BINS) -> list[dict[str, Any]]:
    """Returns, per bin (lower, upper] of confidence, its count, mean confidence and accuracy; None if it is empty."""
    chances = np.asarray(probs, dtype=np.float64)
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == np.asarray(labels)
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(number, minlength=bins)
    sums = np.bincount(number, confidence, bins), np.bincount(number, right, bins)
    return [
        {
            "lower": one / bins,
            "upper": (one + 1) / bins,
            "count": int(counts[one]),
            "confidence": float(sums[0][one] / counts[one]) if counts[one] else None,
            "accuracy": float(sums[1][one] / counts[one]) if counts[one] else None,
        }
        for one in range(bins)
    ]


def expected_calibration_error(probs: ArrayLike, labels: ArrayLike, bins: int = BINS) -> float:
    """Returns the mean |accuracy - confidence| over equally wide bins of confidence, weighted by count (Guo 2017)."""
    filled = [one for one in reliability_bins(probs, labels, bins) if one["count"]]
    total = sum(one["count"] for one in filled)
    return sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in filled) / total if total else 0.0


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Returns the T > 0 that minimises the negative log-likelihood of softmax(logits / T) on validation (Guo 2017).

    Without rows, or if all logits are equal, it returns 1.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if not len(scores) or np.ptp(scores, axis=1).max() == 0:
        return 1.0
    rows = np.arange(len(scores))

    def loss(log_temperature: float) -> float:
        chances: NDArray[np.float64] = log_softmax(scores / np.exp(log_temperature), axis=1)
        return float(-chances[rows, truth].mean())

    found = minimize_scalar(loss, bounds=LOG_RANGE, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
