"""Makes the stream of batches: batch t of rank r depends only on (seed, t, r), not on the batches read before.

Batches are drawn from pools: the labelled images, the unlabelled images and stored pseudo-labels. The dense
probabilities of a selection are in one file that all processes of a host map, so that they share the memory.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from selftrain.ssl_tasks.data.batch import Batch, View, Views
from selftrain.ssl_tasks.data.order import Sampler, build_sampler
from selftrain.ssl_tasks.data.views.ctaugment import PolicyBoard
from selftrain.ssl_tasks.data.views.view import Augmenter, Bytes, Draws
from selftrain.ssl_tasks.errors import ConfigError, DataError
from selftrain.ssl_tasks.settings.data import AugmentSettings
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.locks import file_lock

Integers = NDArray[np.int64]
BETA = 0.9999  # for the effective number of samples


class Images(Protocol):
    """The interface to a pool of images that a stream needs."""

    @property
    def labels(self) -> Integers: ...

    def __len__(self) -> int: ...

    def images(self, index: Integers) -> NDArray[np.uint8]: ...

    def truth(self) -> Integers: ...


class Source(Protocol):
    """The interface to a data set that a stream needs."""

    @property
    def num_classes(self) -> int: ...

    @property
    def flip(self) -> bool: ...

    def pool(self, name: Literal["labeled", "unlabeled"]) -> Images: ...


@dataclass(frozen=True)
class PseudoPool:
    """Stored pseudo-labels: positions in the unlabelled pool, labels, numbers of copies, and soft targets if any."""

    positions: Integers
    labels: Integers
    copies: Integers
    probs: NDArray[np.float32] | None = None

    @classmethod
    def open(cls, selection: Artifact, scratch: Path, soft: bool = True) -> "PseudoPool":
        """Reads a selection; if `soft`, its soft targets are mapped from a file in `scratch`."""
        columns = ["position", "label", "copies"]
        path = selection.file("selection.parquet")
        table = pq.read_table(path, columns=columns)
        if not table.num_rows:
            raise DataError(
                f"the selection {path} is empty: no pseudo-label was accepted. Lower select.threshold, or look at "
                "the predictions' confidence."
            )
        positions, labels, copies = (table[name].to_numpy().astype(np.int64) for name in columns)
        soft = soft and "probs" in pq.read_schema(path).names
        return cls(positions, labels, copies, map_soft_targets(path, scratch) if soft else None)

    def __len__(self) -> int:
        return len(self.positions)

    def targets(self, index: Integers, num_classes: int) -> NDArray[np.float32]:
        """Returns [n, K] rows of probabilities: the teacher's if soft, else one-hot."""
        if self.probs is not None:
            return self.probs[index]
        return np.eye(num_classes, dtype=np.float32)[self.labels[index]]


class LabeledPool:
    """The labelled images, followed by the accepted ones if a selection is to be learned as labels."""

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
        """Returns [K]: the number of images of each class, with copies."""
        return np.bincount(self.labels, self.copies, num_classes).astype(np.int64)

    def images(self, index: Integers) -> NDArray[np.uint8]:
        """Returns the images as uint8 [n, S, S, C]."""
        if self.selection is None:
            return self.labeled.images(index)
        own = index < len(self.labeled)
        first = self.labeled.images(index[own])
        images = np.empty((len(index), *first.shape[1:]), np.uint8)
        images[own] = first
        images[~own] = self.unlabeled.images(self.selection.positions[index[~own] - len(self.labeled)])
        return images


def class_weights(counts: Integers, kind: Literal["none", "inverse", "effective"]) -> NDArray[np.float32] | None:
    """Returns a weight per class, 1 on average over the samples: inverse frequency, or by effective numbers
    (1901.05555)."""
    if kind == "none":
        return None
    share = counts if kind == "inverse" else 1 - BETA**counts
    weights = np.divide(1.0, share, out=np.zeros(len(counts)), where=counts > 0)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def logit_offsets(counts: Integers, train: TrainSettings) -> NDArray[np.float32] | None:
    """Returns τ · log of each class's share of the labels, for logit adjustment; τ is 1 in the balanced softmax.

    A class without labels counts as if it had half of one, so that its offset is finite.
    """
    if train.loss == "cross_entropy":
        return None
    strength = train.adjustment if train.loss == "logit_adjusted" else 1.0
    shares = np.maximum(counts, 0.5) / counts.sum()
    return (strength * np.log(shares)).astype(np.float32)


ROWS = 4096  # rows written at a time
READ = 1 << 20  # bytes read at a time, instead of a whole row group


def map_soft_targets(selection: Path, folder: Path) -> NDArray[np.float32]:
    """Returns [n, K], read-only. The first process writes the file in `folder`; later ones reuse it."""
    path = folder / "soft_targets.f32"
    with file_lock(folder / "soft_targets.lock"):
        if not path.exists():
            write_soft_targets(selection, path)
    rows = pq.read_metadata(selection).num_rows
    return np.asarray(np.memmap(path, np.float32, "r")).reshape(rows, -1)


def write_soft_targets(selection: Path, path: Path) -> None:
    """Writes the rows of column `probs`, one after the other; the file gets its name when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    source = pq.ParquetFile(selection, buffer_size=READ, pre_buffer=False)
    with source as table, temporary.open("wb") as file:
        for batch in table.iter_batches(ROWS, columns=["probs"]):
            file.write(
                batch["probs"].flatten().to_numpy()
            )  # not through a map: a full disk would kill the process with SIGBUS
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class BatchStream(TorchDataset[Batch]):
    """A stream whose `stream[step]` is the rank's slice of the step's batch: uint8 NHWC images on the CPU.

    The batch of a step is the same for any number of ranks, including order and views. If a method has no `pseudo`
    view, the selection's labels are added to the labelled pool.
    """

    def __init__(
        self,
        dataset: Source,
        views: Views,
        train: TrainSettings,
        augment: AugmentSettings,
        seed: int,
        rank: int = 0,
        world: int = 1,
        selection: PseudoPool | None = None,
        policy: PolicyBoard | None = None,
    ) -> None:
        if views.pseudo and selection is None:
            raise ConfigError(
                "this method learns from stored pseudo-labels, and there is no selection. Use it as a round's student, "
                "or choose a method that needs none (supervised, fixmatch, …) for the teacher."
            )
        if views.unlabeled and not len(dataset.pool("unlabeled")):
            raise ConfigError(
                "this method learns from unlabelled images, and the data set has none. Label fewer of the images "
                "(data.split), name a folder of unlabelled ones, or use method supervised."
            )
        self.views, self.train, self.seed, self.num_classes = views, train, seed, dataset.num_classes
        self.augmenter, self.policy = Augmenter(augment, dataset.flip), policy
        self.unlabeled: Images = dataset.pool("unlabeled")
        self.labeled = LabeledPool(dataset.pool("labeled"), self.unlabeled, None if views.pseudo else selection)
        self.selection = selection if views.pseudo else None
        self.truth = self.unlabeled.truth() if views.unlabeled else None  # only for diagnosis
        counts = self.labeled.counts(self.num_classes)
        self.weights, self.offsets = class_weights(counts, train.class_weights), logit_offsets(counts, train)
        self.samplers = self._samplers()
        self.first, self.last = (train.batch_size * part // world for part in (rank, rank + 1))

    def _samplers(self) -> dict[str, Sampler]:
        labeled, selection = self.labeled, self.selection
        classes = labeled.labels if self.train.class_balanced else None
        samplers = {"labeled": build_sampler(self.seed, "labeled", len(labeled), labeled.copies, classes)}
        if self.views.unlabeled:
            samplers["unlabeled"] = build_sampler(self.seed, "unlabeled", len(self.unlabeled))
        if selection is not None:
            samplers["pseudo"] = build_sampler(self.seed, "pseudo", len(selection), selection.copies)
        return samplers

    def __len__(self) -> int:
        return self.train.steps

    def prepare(self) -> None:
        """Reads one image of each pool, so that worker processes inherit open files."""
        for pool in (self.labeled, self.unlabeled):
            pool.images(np.arange(min(1, len(pool))))

    def __getitem__(self, step: int) -> Batch:
        index = self._entries("labeled", step, 1)
        images, labels = self.labeled.images(index), self.labeled.labels[index]
        batch = Batch(
            labeled=self._render("labeled", images, self.views.labeled, step, 1),
            labels=torch.from_numpy(labels),
            labeled_index=torch.from_numpy(index),
            label_weights=None if self.weights is None else torch.from_numpy(self.weights[labels]),
            label_offsets=None if self.offsets is None else torch.from_numpy(np.tile(self.offsets, (len(labels), 1))),
        )
        if self.policy is not None:
            probe, choices = self.augmenter.probe(images, self._draws("labeled", step, 1, "probe"))
            batch = replace(batch, probe=torch.from_numpy(probe), probe_choices=torch.from_numpy(choices))
        if self.truth is not None:
            batch = self._with_unlabeled(batch, step, self.truth)
        return batch if self.selection is None else self._with_pseudo(batch, step, self.selection)

    def _with_unlabeled(self, batch: Batch, step: int, truth: Integers) -> Batch:
        views, ratio = self.views.unlabeled, self.train.unlabeled_ratio
        index = self._entries("unlabeled", step, ratio)
        return replace(
            batch,
            unlabeled=self._render("unlabeled", self.unlabeled.images(index), views, step, ratio),
            unlabeled_index=torch.from_numpy(index),
            unlabeled_truth=torch.from_numpy(truth[index]),
        )

    def _with_pseudo(self, batch: Batch, step: int, selection: PseudoPool) -> Batch:
        ratio = self.train.unlabeled_ratio
        index = self._entries("pseudo", step, ratio)
        images = self.unlabeled.images(selection.positions[index])
        return replace(
            batch,
            pseudo=self._render("pseudo", images, self.views.pseudo, step, ratio),
            pseudo_targets=torch.from_numpy(selection.targets(index, self.num_classes)),
            pseudo_index=torch.from_numpy(index),
        )

    def _entries(self, pool: str, step: int, ratio: int) -> Integers:
        start = step * self.train.batch_size
        return self.samplers[pool].entries((start + self.first) * ratio, (start + self.last) * ratio)

    def _render(self, pool: str, images: Bytes, views: Sequence[View], step: int, ratio: int) -> tuple[Tensor, ...]:
        rates = None if self.policy is None else self.policy.at(step)
        return tuple(
            torch.from_numpy(self.augmenter.view(view, images, self._draws(pool, step, ratio, number), rates))
            for number, view in enumerate(views)
        )

    def _draws(self, pool: str, step: int, ratio: int, view: int | str) -> Draws:
        return Draws(self.first * ratio, self.last * ratio, self.seed, (pool, step, view))
