"""Is one model better than another on the same images? McNemar's exact test, and a paired bootstrap interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from selftrain.ssl_tasks.evaluation.metrics import percentile_interval

Booleans = NDArray[np.bool_]


def mcnemar(first: Booleans, second: Booleans) -> dict[str, Any]:
    """Exact test on the images where one is right and the other wrong; the rest tell nothing of the difference.

    `p_value` is two-sided; `p_second_worse` is the chance of so many losses of the second if both were equal.
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
    """95 % interval of accuracy(second) - accuracy(first) when the same images are drawn again for both.

    Only the numbers of gains and losses matter, and those of a resample are multinomial: no image is drawn one by one.
    """
    n, gains, losses = len(first), int((second & ~first).sum()), int((first & ~second).sum())
    drawn = np.random.default_rng(seed).multinomial(n, [gains / n, losses / n, (n - gains - losses) / n], resamples)
    return percentile_interval((drawn[:, 0] - drawn[:, 1]) / n)


def compare_right(first: Booleans, second: Booleans, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Both accuracies, their difference with its interval, and the test."""
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
    """100 × mean over corruptions of Σ error / Σ reference's error over severities (Hendrycks 2019): 100 is equal.

    A corruption under which the reference makes no error at all says nothing, and is left out.
    """
    ratios = [sum(errors[name]) / sum(reference[name]) for name in sorted(errors) if sum(reference.get(name, ()))]
    return 100 * float(np.mean(ratios)) if ratios else 100.0
