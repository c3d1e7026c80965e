"""The views of `selftrain.ssl_tasks.data.batch.View`, drawn for a slice of a batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.batch import View
from selftrain.ssl_tasks.data.splits.permutation import uniform_rows
from selftrain.ssl_tasks.data.views import ctaugment, simclr_view
from selftrain.ssl_tasks.data.views.augmentation import squares
from selftrain.ssl_tasks.data.views.randaugment import randaugment_draws, randaugment_view
from selftrain.ssl_tasks.data.views.weak import DRAWS, weak_view
from selftrain.ssl_tasks.settings.data import AugmentSettings

Bytes = NDArray[np.uint8]
Rates = NDArray[np.float32]


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

    def view(self, view: View, images: Bytes, draws: Draws, rates: Rates | None = None) -> Bytes:
        """uint8 [n, S, S, C] → the same shape, changed as the view says; `rates` are what CTAugment has learnt."""
        if view == "none":
            return images
        if view == "strong" and self.settings.strong == "simclr":  # its crop takes the place of the weak view's
            uniform = draws.uniform(simclr_view.DRAWS, "strong")
            return simclr_view.simclr_view(images, uniform, self._flips(), self.settings)
        weak = self._weak(images, draws)
        return weak if view == "weak" else self._strong(weak, draws, rates)

    def probe(self, images: Bytes, draws: Draws) -> tuple[Bytes, NDArray[np.int64]]:
        """A view by which CTAugment judges its operations, and what was chosen: [n, depth, (operation, bin)]."""
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
