"""Scores rows of probabilities, with intervals, and compares two evaluations on the same images.

Scores: accuracy, scores per class, likelihood, Brier score and calibration. The interval of the accuracy is Wilson's;
those of balanced accuracy, NLL, Brier and ECE are percentiles of a bootstrap over the images. Both are 95 % intervals.
Comparisons: McNemar's exact test, a paired bootstrap interval, robustness.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import binomtest

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.pseudo_labels.calibration import BINS, expected_calibration_error, reliability_bins
from selftrain.ssl_tasks.store.artifacts import Artifact

Z = 1.959963984540054  # the standard normal's 97.5 % point
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share; it is valid at 0 and 1 and for a few images (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    share, square = right / total, Z * Z / total
    centre, width = share + square / 2, Z * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, (centre - width) / (1 + square)), min(1.0, (centre + width) / (1 + square))


def confusion_matrix(labels: Integers, predicted: Integers, num_classes: int) -> Integers:
    """Returns [K, K] counts: rows are the ground truth, columns the predictions."""
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def class_scores(confusion: Integers, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns recall and precision of every class; None without images or without predictions of the class."""
    right, there, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "class": name,
            "count": int(there[one]),
            "predicted": int(predicted[one]),
            "recall": float(right[one] / there[one]) if there[one] else None,
            "precision": float(right[one] / predicted[one]) if predicted[one] else None,
        }
        for one, name in enumerate(classes)
    ]


def balanced_accuracy(confusion: Integers | Floats) -> float:
    """Returns the mean recall over the classes that occur."""
    there = confusion.sum(axis=1)
    present = there > 0
    return float((confusion.diagonal()[present] / there[present]).mean())


def log_losses(probs: Floats, labels: Integers) -> Floats:
    """Returns [n] -log p(ground truth); a probability of 0 counts as float32's smallest normal number."""
    return -np.log(np.maximum(probs[np.arange(len(labels)), labels], np.finfo(np.float32).tiny))


def brier_scores(probs: Floats, labels: Integers) -> Floats:
    """Returns [n] squared distances to the one-hot ground truth, summed over the classes (0 … 2)."""
    return (probs**2).sum(axis=1) - 2 * probs[np.arange(len(labels)), labels] + 1


def measure(
    probs: NDArray[np.floating], labels: Integers, classes: Sequence[str], resamples: int = 1_000, seed: int = 0
) -> dict[str, Any]:
    """Returns all scores of one split as plain JSON values; only {"count": 0} for an empty split."""
    if not len(labels):
        return {"count": 0}
    chances = np.asarray(probs, dtype=np.float64)
    predicted = chances.argmax(axis=1)
    right, confusion = int((predicted == labels).sum()), confusion_matrix(labels, predicted, len(classes))
    low, high = wilson_interval(right, len(labels))
    return {
        "count": len(labels),
        "accuracy": right / len(labels),
        "accuracy_interval": {"low": low, "high": high, "method": "wilson", "level": 0.95},
        "balanced_accuracy": balanced_accuracy(confusion),
        "nll": float(log_losses(chances, labels).mean()),
        "brier": float(brier_scores(chances, labels).mean()),
        "ece": expected_calibration_error(chances, labels),
        "intervals": bootstrap_intervals(chances, labels, resamples, seed),
        "per_class": class_scores(confusion, classes),
        "reliability": reliability_bins(chances, labels),
    }


def bootstrap_intervals(probs: Floats, labels: Integers, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Returns bootstrap intervals of the scores without a closed form; none with 0 resamples."""
    if not resamples:
        return {}
    n, num_classes = probs.shape
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap, nll, brier = right - confidence, log_losses(probs, labels), brier_scores(probs, labels)
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {"balanced_accuracy": [], "nll": [], "brier": [], "ece": []}
    for _ in range(resamples):
        weight = np.bincount(generator.integers(n, size=n), minlength=n)
        there = np.bincount(labels, weight, num_classes)
        recall = np.bincount(labels, weight * right, num_classes)[there > 0] / there[there > 0]
        drawn["balanced_accuracy"].append(float(recall.mean()))
        drawn["nll"].append(float(weight @ nll) / n)
        drawn["brier"].append(float(weight @ brier) / n)
        drawn["ece"].append(float(np.abs(np.bincount(bins, weight * gap, BINS)).sum()) / n)
    return {name: percentile_interval(np.array(values)) for name, values in drawn.items()}


def percentile_interval(drawn: Floats) -> dict[str, Any]:
    """Returns the limits of the middle 95 % of bootstrap values."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"low": float(low), "high": float(high), "method": "bootstrap", "level": 0.95}


def true_precision(dataset: Artifact, selection: Artifact) -> float | None:
    """Returns the accuracy of accepted pseudo-labels whose ground truth is known; None if none is known.

    It is computed after the fact; no stage reads it.
    """
    columns = ["sample_id", "label"]
    truth = pq.ParquetFile(dataset.file("truth.parquet")).read(columns)
    accepted = pq.ParquetFile(selection.file("selection.parquet")).read(columns)
    at = pc.index_in(accepted["sample_id"], truth["sample_id"])
    known = truth["label"].take(at)  # null where the ground truth is unknown
    return pc.mean(pc.equal(accepted["label"], known)).as_py()


Booleans = NDArray[np.bool_]


def mcnemar(first: Booleans, second: Booleans) -> dict[str, Any]:
    """Computes McNemar's exact test, on the images that exactly one of the two models classifies correctly.

    `p_value` is two-sided. `p_second_worse` is the probability of at least so many losses of the second if both were
    equally good.
    """
    gains, losses = int((second & ~first).sum()), int((first & ~second).sum())
    if not gains + losses:
        return {"gains": 0, "losses": 0, "p_value": 1.0, "p_second_worse": 1.0, "p_second_better": 1.0}
    return {
        "gains": gains,
        "losses": losses,
        "p_value": float(binomtest(gains, gains + losses).pvalue),
        "p_second_worse": float(binomtest(losses, gains + losses, alternative="greater").pvalue),
        "p_second_better": float(binomtest(gains, gains + losses, alternative="greater").pvalue),
    }


def difference_interval(first: Booleans, second: Booleans, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Returns the 95 % bootstrap interval of accuracy(second) - accuracy(first), with the same images for both.

    Only the numbers of gains and losses matter. In a resample they are multinomial, so no image is drawn individually.
    """
    n, gains, losses = len(first), int((second & ~first).sum()), int((first & ~second).sum())
    drawn = np.random.default_rng(seed).multinomial(n, [gains / n, losses / n, (n - gains - losses) / n], resamples)
    return percentile_interval((drawn[:, 0] - drawn[:, 1]) / n)


def compare_right(first: Booleans, second: Booleans, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Returns both accuracies, their difference with its interval, and McNemar's test."""
    if not len(first):
        return {"count": 0}
    return {
        "count": len(first),
        "first_accuracy": float(first.mean()),
        "second_accuracy": float(second.mean()),
        "difference": float(second.mean() - first.mean()),
        "difference_interval": difference_interval(first, second, resamples, seed),
        "mcnemar": mcnemar(first, second),
    }


def corruption_errors(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Returns error rates by corruption and severity, as `mean_corruption_error` takes them."""
    return {name: [1 - one["accuracy"] for one in rows] for name, rows in found.items()}


def mean_corruption_error(errors: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]) -> float:
    """Returns 100 × the mean over corruptions of Σ error / Σ reference's error over severities (Hendrycks 2019).

    100 means equal. A corruption under which the reference makes no error is left out.
    """
    ratios = [sum(errors[name]) / sum(reference[name]) for name in sorted(errors) if sum(reference.get(name, ()))]
    return 100 * float(np.mean(ratios)) if ratios else 100.0


Split = Literal["validation", "test"]


def read_predictions(evaluation: Artifact, split: Split) -> pd.DataFrame:
    """Reads `label`, `predicted` and `confidence` of an evaluation's split, by sample_id."""
    columns = ["split", "sample_id", "label", "predicted", "confidence"]
    table = pd.read_parquet(evaluation.file("predictions.parquet"), columns=columns)
    return table[table["split"] == split].drop(columns="split").set_index("sample_id").sort_index()


def compare_evaluations(
    first: Artifact, second: Artifact, split: Split = "test", resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Returns both accuracies, their difference with interval, McNemar's test, and the second's relative mCE.

    Raises DataError if the images or their labels differ.
    """
    one, other = read_predictions(first, split), read_predictions(second, split)
    if not one.index.equals(other.index) or not one["label"].equals(other["label"]):
        raise DataError(
            f"these evaluations cannot be paired: found {len(one)} and {len(other)} {split} images, of which "
            f"{len(one.index.intersection(other.index))} are in both; compare models evaluated on the same data set"
        )
    right = [(table["predicted"] == table["label"]).to_numpy() for table in (one, other)]
    compared = compare_right(right[0], right[1], resamples, seed)
    relative = relative_corruption_error(first, second)
    return compared if relative is None else {**compared, "mean_corruption_error": relative}


def relative_corruption_error(reference: Artifact, model: Artifact) -> float | None:
    """Returns a model's mCE relative to a reference; None unless both were evaluated under corruptions."""
    found = [_robustness(artifact).get("corruptions") for artifact in (reference, model)]
    if found[0] is None or found[1] is None:
        return None
    return mean_corruption_error(corruption_errors(found[1]), corruption_errors(found[0]))


def _robustness(evaluation: Artifact) -> dict[str, Any]:
    path = evaluation.file("robustness.json")
    return json.loads(path.read_text()) if path.exists() else {}
