"""Two evaluations side by side: paired on the same images, and robust relative to one another."""

import json
from typing import Any, Literal

import pandas as pd

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.evaluation.paired import compare_right, mean_corruption_error
from selftrain.ssl_tasks.evaluation.robustness import corruption_errors
from selftrain.ssl_tasks.store.artifacts import Artifact

Split = Literal["validation", "test"]


def read_predictions(evaluation: Artifact, split: Split) -> pd.DataFrame:
    """`label`, `predicted` and `confidence` of an evaluation's split, by sample_id."""
    columns = ["split", "sample_id", "label", "predicted", "confidence"]
    table = pd.read_parquet(evaluation.file("predictions.parquet"), columns=columns)
    return table[table["split"] == split].drop(columns="split").set_index("sample_id").sort_index()


def compare_evaluations(
    first: Artifact, second: Artifact, split: Split = "test", resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Both accuracies, their difference with interval, McNemar's test, and the second's mCE relative to the first's.

    Both must have seen the same images with the same labels; DataError otherwise.
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
    """mCE of a model relative to a reference; None unless both were evaluated under corruptions."""
    found = [_robustness(artifact).get("corruptions") for artifact in (reference, model)]
    if found[0] is None or found[1] is None:
        return None
    return mean_corruption_error(corruption_errors(found[1]), corruption_errors(found[0]))


def _robustness(evaluation: Artifact) -> dict[str, Any]:
    path = evaluation.file("robustness.json")
    return json.loads(path.read_text()) if path.exists() else {}
