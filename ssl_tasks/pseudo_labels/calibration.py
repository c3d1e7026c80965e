"""Measures and improves calibration: temperature scaling, reliability bins, calibration error (arXiv 1706.04599)."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Floats = NDArray[np.float64]

BINS = 15  # of the expected calibration error
LOG_RANGE = (-5.0, 5.0)  # temperatures from 0.0067 to 148; beyond, probabilities are practically one-hot or uniform
LOG_RANGE_OF_TEACHERS = (float(np.log(0.05)), float(np.log(20.0)))


def fitting_half(sample_ids: list[str]) -> NDArray[np.bool_]:
    """Selects, by id, the validation images on which the temperature is fitted; thresholds are chosen on the others."""
    bits = [hashlib.sha256(f"temperature:{sample}".encode()).digest()[0] & 1 for sample in sample_ids]
    return np.array(bits, bool)


def fit_temperature(logits: ArrayLike, labels: ArrayLike, log_range: tuple[float, float] = LOG_RANGE) -> float:
    """Returns the T > 0 that minimises the negative log-likelihood of softmax(logits / T) on held-out labels.

    Without rows, or if all logits are equal, it returns 1.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if not len(scores) or np.ptp(scores, axis=1).max() == 0:
        return 1.0

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(log_softmax(scores / np.exp(log_temperature), axis=1), truth)

    found = minimize_scalar(loss, bounds=log_range, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def negative_log_likelihood(log_probs: Floats, labels: NDArray[np.int64]) -> float:
    """Returns the mean over the images."""
    return float(-log_probs[np.arange(len(labels)), labels].mean())


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
    """Returns the mean |accuracy - confidence| over equally wide bins of confidence, weighted by count."""
    filled = [one for one in reliability_bins(probs, labels, bins) if one["count"]]
    total = sum(one["count"] for one in filled)
    return sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in filled) / total if total else 0.0


def calibration(log_probs: Floats, labels: NDArray[np.int64], temperature: float) -> dict[str, Any]:
    """Measures how well confidence and accuracy agree at a temperature; empty without images."""
    if not len(labels):
        return {"images": 0}
    tempered = log_softmax(log_probs / temperature, axis=1)
    confidence = np.exp(tempered.max(axis=1))
    correct = tempered.argmax(axis=1) == labels
    # The expected calibration error, summed in another order: the digests of predictions depend on its last bits.
    number = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(number, weights=confidence - correct, minlength=BINS)
    return {
        "images": len(labels),
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidence.mean()),
        "nll": negative_log_likelihood(tempered, labels),
        "ece": float(np.abs(gap).sum() / len(confidence)),
    }
