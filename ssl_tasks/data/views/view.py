"""Draws the views of a batch: none, weak or strong.

The weak view is FixMatch's: a random flip where the source allows it, and a crop of the image padded by reflection.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.batch import View
from selftrain.ssl_tasks.data.order import uniform_rows
from selftrain.ssl_tasks.data.views import ctaugment
from selftrain.ssl_tasks.data.views.augmentation import SIMCLR_DRAWS, simclr_view, squares
from selftrain.ssl_tasks.data.views.randaugment import randaugment_draws, randaugment_view
from selftrain.ssl_tasks.settings.data import AugmentSettings

Bytes = NDArray[np.uint8]
Rates = NDArray[np.float32]


@dataclass(frozen=True)
class Draws:
    """The random numbers of images start … stop - 1 of a batch: a slice of the whole batch's numbers."""

    start: int
    stop: int
    seed: int
    names: tuple[object, ...]  # pool, step, view: they seed the numbers

    def uniform(self, width: int, purpose: str) -> NDArray[np.float64]:
        """Returns [n, width] numbers in [0, 1)."""
        return uniform_rows(self.start, self.stop, width, self.seed, *self.names, purpose)


@dataclass(frozen=True)
class Augmenter:
    """Computes the views of the images of one data set."""

    settings: AugmentSettings
    flip: bool  # whether the source allows horizontal flips

    def view(self, view: View, images: Bytes, draws: Draws, rates: Rates | None = None) -> Bytes:
        """Computes a view, uint8 [n, S, S, C] → the same shape; `rates` are those that CTAugment has learned."""
        if view == "none":
            return images
        if view == "strong" and self.settings.strong == "simclr":  # its crop replaces the weak view's shift
            uniform = draws.uniform(SIMCLR_DRAWS, "strong")
            return simclr_view(images, uniform, self._flips(), self.settings)
        weak = self._weak(images, draws)
        return weak if view == "weak" else self._strong(weak, draws, rates)

    def probe(self, images: Bytes, draws: Draws) -> tuple[Bytes, NDArray[np.int64]]:
        """Returns a view by which CTAugment rates its operations, and the choices [n, depth, (operation, bin)]."""
        depth = self.settings.operations
        choice = ctaugment.choose(None, draws.uniform(ctaugment.draws(depth), "probe"), depth)
        return ctaugment.apply(self._weak(images, draws), choice), choice.pairs()

    def _flips(self) -> bool:
        return self.flip if self.settings.flip == "auto" else self.settings.flip

    def _weak(self, images: Bytes, draws: Draws) -> Bytes:
        return weak_view(images, draws.uniform(DRAWS, "weak"), self._flips(), self.settings.crop_padding)

    def _strong(self, weak: Bytes, draws: Draws, rates: Rates | None) -> Bytes:
        settings = self.settings
        if settings.strong != "ctaugment":
            return randaugment_view(weak, draws.uniform(randaugment_draws(settings), "strong"), settings)
        width = ctaugment.draws(settings.operations)
        numbers = draws.uniform(width + 3, "strong")
        rates = ctaugment.fresh_rates() if rates is None else rates
        choice = ctaugment.choose(rates, numbers[:, :width], settings.operations)
        return ctaugment.apply(weak, choice, squares(numbers[:, width:], weak.shape[1], settings))


DRAWS = 3  # uniform numbers per image


def weak_view(images: Bytes, draws: NDArray[np.float64], flip: bool, crop_padding: float) -> Bytes:
    """Flips with probability ½ and shifts by up to `crop_padding` of the side; draws are [n, 3] in [0, 1)."""
    height, width = images.shape[1:3]
    pad_y, pad_x = int(height * crop_padding), int(width * crop_padding)
    tops = (draws[:, 1] * (2 * pad_y + 1)).astype(np.int64).tolist()
    lefts = (draws[:, 2] * (2 * pad_x + 1)).astype(np.int64).tolist()
    flipped = ((draws[:, 0] < 0.5) & flip).tolist()
    out = np.empty(images.shape, np.uint8)  # in C order, whatever the memory order of the images
    for number, (top, left, mirror) in enumerate(zip(tops, lefts, flipped, strict=True)):
        # Image by image: a padded copy of the whole batch would exceed the CPU's cache; ten times slower at 224×224.
        padded = cv2.copyMakeBorder(images[number], pad_y, pad_y, pad_x, pad_x, cv2.BORDER_REFLECT_101)
        crop = padded[top : top + height, left : left + width]
        if mirror:
            cv2.flip(crop, 1, dst=out[number])
        else:
            out[number] = crop.reshape(out[number].shape)
    return out
