"""Compares two evaluations on the same images: McNemar's exact test, a paired bootstrap interval, robustness."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.evaluation.metrics import percentile_interval
from selftrain.ssl_tasks.evaluation.robustness import corruption_errors
from selftrain.ssl_tasks.store.artifacts import Artifact

Booleans = NDArray[np.bool_]


def mcnemar(first: Booleans, second: Booleans) -> dict[str, Any]:
    """McNemar's exact test, on the images that exactly one of the two models classifies correctly.

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
