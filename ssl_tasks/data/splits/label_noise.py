"""Wrong labels on purpose, for experiments with methods that are to bear them."""

import numpy as np

from selftrain.ssl_tasks.data.splits.split import hash_order


def flip_labels(labels: np.ndarray, ids: list[str], classes: int, share: float, seed: int) -> np.ndarray:
    """Each label is, with probability `share`, another class: a function of id and seed, whoever else is labelled."""
    chance = hash_order(ids, f"label noise {seed}") / 2.0**64
    shift = 1 + hash_order(ids, f"wrong label {seed}") % np.uint64(max(1, classes - 1))
    wrong = (labels + shift.astype(np.int64)) % classes
    return np.where(chance < share, wrong, labels).astype(labels.dtype)
