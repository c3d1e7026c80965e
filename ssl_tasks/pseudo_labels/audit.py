"""Where a benchmark knows the truth: how right the invented labels are. Read afterwards, never by a stage's body."""

from ssl_tasks.artifacts import Artifact


def true_precision(dataset: Artifact, selection: Artifact) -> float | None:
    """The share of selected pseudo-labels that are right, among those whose truth is known; None where none is."""
    import pandas as pd  # here: verbs that only look answer sooner without it

    truth = pd.read_parquet(dataset.file("truth.parquet"), columns=["sample_id", "label"])
    chosen = pd.read_parquet(selection.file("selection.parquet"), columns=["sample_id", "label"])
    both = chosen.merge(truth, on="sample_id", suffixes=("", "_true"))
    return float((both["label"] == both["label_true"]).mean()) if len(both) else None
