"""The views of `ssl_tasks.batch.View`, drawn for a slice of a batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_tasks.batch import View
from ssl_tasks.data.augmentation import strong_draws, strong_view
from ssl_tasks.data.permutation import uniform_rows
from ssl_tasks.data.settings import AugmentSettings
from ssl_tasks.data.weak import DRAWS, weak_view

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Draws:
    """The random numbers of images start … stop - 1 of a batch: those of the whole batch, cut to the slice."""

    start: int
    stop: int
    seed: int
    names: tuple[object, ...]  # pool, step, view: what makes these numbers these

    def uniform(self, width: int, purpose: str) -> NDArray[np.float64]:
        """[n, width] in [0, 1)."""
        return uniform_rows(self.start, self.stop, width, self.seed, *self.names, purpose)


@dataclass(frozen=True)
class Augmenter:
    """What the views mean for one data set."""

    settings: AugmentSettings
    flip: bool  # whether the source allows horizontal flips

    def view(self, view: View, images: Bytes, draws: Draws) -> Bytes:
        """uint8 [n, S, S, C] → the same shape, changed as the view says."""
        if view == "none":
            return images
        flip = self.flip if self.settings.flip == "auto" else self.settings.flip
        weak = weak_view(images, draws.uniform(DRAWS, "weak"), flip, self.settings.crop_padding)
        if view == "weak":
            return weak
        strong = strong_view(weak, draws.uniform(strong_draws(self.settings), "strong"), self.settings)
        return strong if view == "strong" else rotated_view(strong, quarter_turns(draws))


def quarter_turns(draws: Draws) -> NDArray[np.int64]:
    """[n] of 0 … 3: by how much the `rotated` view of each image is turned."""
    return (draws.uniform(1, "turns")[:, 0] * 4).astype(np.int64)


def rotated_view(images: Bytes, turns: NDArray[np.int64]) -> Bytes:
    """Each image turned by its number of quarter turns, counter-clockwise."""
    out = np.empty(images.shape, np.uint8)
    for number in range(4):
        out[turns == number] = np.rot90(images[turns == number], number, axes=(1, 2))
    return out
