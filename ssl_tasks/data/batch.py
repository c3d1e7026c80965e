"""Defines the interface between methods and data: the views that a method needs, and the batches that it gets."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

View = Literal["none", "weak", "strong"]


@dataclass(frozen=True)
class Views:
    """The views of an image that a method needs, in the order in which it reads them.

    `unlabeled=("weak", "strong")` is FixMatch; `("weak", "weak")` is two independent weak views. A strong view is
    drawn on top of a weak one of its own, or, where it is SimCLR's, from the image itself.
    `pseudo` asks for images from the selection (stored pseudo-labels) with their targets.
    """

    labeled: tuple[View, ...] = ("weak",)
    unlabeled: tuple[View, ...] = ()
    pseudo: tuple[View, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One step's images. Every view is [n, C, H, W], float and normalised, in channels_last on any device.

    `*_index` is the sample's position in its pool (0 … pool size - 1), the index of per-sample memory.
    `pseudo_targets` are rows of probabilities, one-hot where the selection keeps hard labels.
    `unlabeled_truth` is only for diagnosis (accuracy of pseudo-labels): -1 where unknown. No loss may read it.
    """

    labeled: tuple[Tensor, ...]
    labels: Tensor  # [B] int64
    labeled_index: Tensor  # [B] int64
    unlabeled: tuple[Tensor, ...] = ()
    unlabeled_index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    pseudo: tuple[Tensor, ...] = ()
    pseudo_targets: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    pseudo_index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    unlabeled_truth: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    label_weights: Tensor | None = None  # [B] float, where imbalanced labels are weighted
    label_offsets: Tensor | None = None  # [B, K] float, what the labels' loss adds to the logits of imbalanced classes
    probe: Tensor | None = None  # [B, …] labelled images that a learnt augmentation judges its operations by …
    probe_choices: Tensor | None = None  # … and the operations applied to them; only the engine reads both

    def map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        """Returns the batch with `move` applied to every tensor, such as a transfer to a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(move(tensor) for tensor in value)
            return None if value is None else move(value)

        return replace(self, **{item.name: moved(getattr(self, item.name)) for item in fields(self)})

    def pin_memory(self) -> "Batch":
        """Pins every tensor; DataLoader calls this on CUDA."""
        return self.map(lambda tensor: tensor.pin_memory())
