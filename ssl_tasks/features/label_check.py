"""Finds given labels that are probably wrong, by confident learning (Northcutt et al. 2021, arXiv 1911.00068).

A logistic regression on stored features predicts each image with a known label without learning from this label (five
folds). The threshold of a class is the mean probability that its own images get for it. An image is confidently of a
class if its probability for the class reaches the threshold. It is suspect if it is confidently of some class and the
most probable of these is not its label. The least probable labels come first.
"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.stored_features import StoredFeatures
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.features.linear import FOLDS, PENALTIES, Examples, Tried, folds_of, left_out_logits, vectors


def suspects(labels: NDArray[np.int64], probs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the positions of suspect images, the most suspect first, and their probable classes."""
    own = probs[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probs.shape[1])
    means = np.bincount(labels, own, probs.shape[1]) / np.maximum(counts, 1)
    confident = (
        probs >= np.where(counts > 0, means, np.inf) - 1e-6
    )  # a rounding error must not put a value below its own mean
    is_of = np.where(confident, probs, -1).argmax(axis=1)
    found = np.flatnonzero(confident.any(axis=1) & (is_of != labels) & (probs.argmax(axis=1) != labels))
    found = found[np.argsort(own[found], kind="stable")]
    return found, is_of[found]


def left_out_probabilities(
    features: torch.Tensor, labels: NDArray[np.int64], sample_ids: list[str], num_classes: int
) -> NDArray[np.float64]:
    """Returns [n, K]: each row by a regression that did not learn from its label, with the best penalty."""
    scaled = (features - features.mean(dim=0)) / features.std().clamp_min(1e-12)
    examples = Examples(scaled, torch.eye(num_classes)[torch.from_numpy(labels)], torch.ones(len(labels)))
    logits = left_out_logits(examples, folds_of(sample_ids, labels), PENALTIES)
    tried = [Tried.of(penalty, one, labels) for penalty, one in zip(PENALTIES, logits, strict=True)]
    best = min(range(len(tried)), key=lambda number: tried[number].nll)
    return torch.softmax(logits[best].double() / tried[best].temperature, dim=1).numpy()


def suspect_labels(dataset: Dataset, stored: StoredFeatures) -> pd.DataFrame:
    """Returns a row for each given label that the features contradict, the most suspect first.

    Every known label is checked, including those that training may not use; nothing is trained on this table."""
    pool = dataset.pool("all")
    truth = pool.truth()
    known = np.flatnonzero(truth >= 0)
    labels = truth[known]
    counts = np.bincount(labels, minlength=dataset.num_classes)
    if few := [
        f"{name} ({counts[number]})" for number, name in enumerate(dataset.classes) if 0 < counts[number] < FOLDS
    ]:
        raise DataError(
            f"the labels of {', '.join(few)} cannot be checked: expected {FOLDS} labelled images or more of every "
            "class. Label more images, or leave these classes out (data.classes)"
        )
    if (counts > 0).sum() < 2:
        raise DataError("labels can be checked where there are two classes or more, and all images are of one")
    ids = pool.column("sample_id", known)
    probs = left_out_probabilities(vectors(stored, stored.rows(ids)), labels, ids.to_pylist(), dataset.num_classes)
    found, is_of = suspects(labels, probs)
    names = np.array(dataset.classes, object)
    return pd.DataFrame(
        {
            "sample_id": np.array(ids.to_pylist(), object)[found],
            "label": names[labels[found]],
            "suggested": names[is_of],
            "probability": probs[found, labels[found]],
            "suggested_probability": probs[found, is_of],
            "uri": pool.column("uri", known[found]).to_pylist(),
        }
    )
