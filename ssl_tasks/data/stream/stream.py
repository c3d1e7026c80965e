"""The batch stream: batch t of rank r is a pure function of (seed, t, r), whatever was or will be read."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from selftrain.ssl_tasks.data.batch import Batch, View, Views
from selftrain.ssl_tasks.data.stream.pools import Images, Integers, LabeledPool, PseudoPool, Source, class_weights
from selftrain.ssl_tasks.data.stream.sampling import Sampler, build_sampler
from selftrain.ssl_tasks.data.views.policy import PolicyBoard
from selftrain.ssl_tasks.data.views.view import Augmenter, Bytes, Draws
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.data import AugmentSettings
from selftrain.ssl_tasks.settings.training import TrainSettings


class BatchStream(TorchDataset[Batch]):
    """`stream[step]` is the rank's slice of the step's batch: uint8 NHWC images on the CPU.

    The batch of a step is the same for any number of ranks: order, views and all. Where a method takes no `pseudo`
    view, the selection's labels join the labelled pool.
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
        self.truth = self.unlabeled.truth() if views.unlabeled else None  # for the batch's diagnosis alone
        self.weights = class_weights(self.labeled.counts(self.num_classes), train.class_weights)
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
        """Reads one image of each pool, so that worker processes find open what they would each open."""
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
