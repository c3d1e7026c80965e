"""The pools that a stream draws from: the labelled images, with or without stored pseudo-labels, and these alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.stream.soft_targets import map_soft_targets
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.store.artifacts import Artifact

Integers = NDArray[np.int64]
BETA = 0.9999  # of the effective number of samples


class Images(Protocol):
    """What a stream needs of a pool of the data set."""

    @property
    def labels(self) -> Integers: ...

    def __len__(self) -> int: ...

    def images(self, index: Integers) -> NDArray[np.uint8]: ...

    def truth(self) -> Integers: ...


class Source(Protocol):
    """What a stream needs of a data set."""

    @property
    def num_classes(self) -> int: ...

    @property
    def flip(self) -> bool: ...

    def pool(self, name: Literal["labeled", "unlabeled"]) -> Images: ...


@dataclass(frozen=True)
class PseudoPool:
    """Stored pseudo-labels: positions in the unlabelled pool, labels, how often each is shown, soft targets if any."""

    positions: Integers
    labels: Integers
    copies: Integers
    probs: NDArray[np.float32] | None = None

    @classmethod
    def open(cls, selection: Artifact, scratch: Path, soft: bool = True) -> "PseudoPool":
        """Reads a selection; its soft targets, where it has any and they are wanted, are mapped from `scratch`."""
        columns = ["position", "label", "copies"]
        path = selection.file("selection.parquet")
        table = pq.read_table(path, columns=columns)
        if not table.num_rows:
            raise DataError(
                f"the selection {path} is empty: no pseudo-label was believed. Lower select.threshold, or look at "
                "the predictions' confidence."
            )
        positions, labels, copies = (table[name].to_numpy().astype(np.int64) for name in columns)
        soft = soft and "probs" in pq.read_schema(path).names
        return cls(positions, labels, copies, map_soft_targets(path, scratch) if soft else None)

    def __len__(self) -> int:
        return len(self.positions)

    def targets(self, index: Integers, num_classes: int) -> NDArray[np.float32]:
        """[n, K] rows of probabilities: the teacher's where soft, one-hot otherwise."""
        if self.probs is not None:
            return self.probs[index]
        return np.eye(num_classes, dtype=np.float32)[self.labels[index]]


class LabeledPool:
    """The labelled images, followed by the selected ones where a selection is to be learnt as labels."""

    def __init__(self, labeled: Images, unlabeled: Images, selection: PseudoPool | None) -> None:
        self.labeled, self.unlabeled, self.selection = labeled, unlabeled, selection
        self.labels: Integers = labeled.labels
        self.copies: Integers | None = None
        if selection is not None:
            self.labels = np.concatenate([labeled.labels, selection.labels])
            self.copies = np.concatenate([np.ones(len(labeled), np.int64), selection.copies])

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, num_classes: int) -> Integers:
        """[K] how many images each class has, copies counted."""
        return np.bincount(self.labels, self.copies, num_classes).astype(np.int64)

    def images(self, index: Integers) -> NDArray[np.uint8]:
        """uint8 [n, S, S, C]."""
        if self.selection is None:
            return self.labeled.images(index)
        own = index < len(self.labeled)
        first = self.labeled.images(index[own])
        images = np.empty((len(index), *first.shape[1:]), np.uint8)
        images[own] = first
        images[~own] = self.unlabeled.images(self.selection.positions[index[~own] - len(self.labeled)])
        return images


def class_weights(counts: Integers, kind: Literal["none", "inverse", "effective"]) -> NDArray[np.float32] | None:
    """A weight per class, 1 on average over the samples: inverse frequency, or by effective numbers (1901.05555)."""
    if kind == "none":
        return None
    share = counts if kind == "inverse" else 1 - BETA**counts
    weights = np.divide(1.0, share, out=np.zeros(len(counts)), where=counts > 0)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)
