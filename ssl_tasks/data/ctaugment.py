"""CTAugment (ReMixMatch, arXiv 1911.09785): operations whose magnitudes are drawn from what the network can still read.

An operation's range is cut into bins, each with a rate: how well the network recognises images that were changed so.
Strong views draw operations, and for each one of its bins whose rate is near the best; probes draw any bin, and their
match, 1 - ½ Σ|prediction - label|, moves the bin's rate (`ssl_tasks.data.policy`). The operations and ranges are the
official code's, but that its `rescale` also chose a resampling filter, and `posterize` had 8 bins.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_tasks.data import augmentation as change
from ssl_tasks.data.augmentation import OPERATIONS, Bytes, blend

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Rates = NDArray[np.float32]
BINS = 17
DECAY = 0.99
THRESHOLD = 0.8  # of the best bin's rate, below which a bin is not used
PER_OPERATION = 5  # uniform numbers: which, which bin, where in the bin, and a place for what needs one
Place = list[float]


def cut_level(image: Bytes, level: float, place: Place) -> Bytes:
    """A grey square of up to half the side."""
    return change.cutout(image, change.cutout_boxes(np.array([[level, *place]]), image.shape[0], 0.5)[0])


def enhanced(name: str) -> Callable[[Bytes, float, Place], Bytes]:
    """An enhancement by a factor of .1 to 2."""
    apply = OPERATIONS[name].apply
    return lambda image, level, _: apply(image, 0.1 + 1.9 * level)


def signed(name: str, reach: float) -> Callable[[Bytes, float, Place], Bytes]:
    """A movement by -reach to reach."""
    apply = OPERATIONS[name].apply
    return lambda image, level, _: apply(image, (2 * level - 1) * reach)


LEVELED: dict[str, Callable[[Bytes, float, Place], Bytes]] = {  # level in [0, 1)
    "identity": lambda image, level, _: image,
    "autocontrast": lambda image, level, _: blend(image, change.autocontrast(image, 0), level),
    "blur": lambda image, level, _: change.blur(image, level),
    "brightness": enhanced("brightness"),
    "color": enhanced("color"),
    "contrast": enhanced("contrast"),
    "cutout": cut_level,
    "equalize": lambda image, level, _: blend(image, change.equalize(image, 0), level),
    "invert": lambda image, level, _: blend(image, change.invert(image), level),
    "posterize": lambda image, level, _: change.posterize(image, 1 + int(level * 8)),
    "rescale": lambda image, level, _: change.magnify(image, level / 4),
    "rotate": signed("rotate", 45),
    "sharpness": enhanced("sharpness"),
    "shear_x": signed("shear_x", 0.3),
    "shear_y": signed("shear_y", 0.3),
    "smooth": lambda image, level, _: change.sharpness(image, 1 - level),
    "solarize": lambda image, level, _: change.solarize(image, level),
    "translate_x": signed("translate_x", 0.3),
    "translate_y": signed("translate_y", 0.3),
}
TABLE = list(LEVELED.values())


@dataclass(frozen=True)
class Choice:
    """What is done to each image: [n, depth] operations, their bins and levels, and [n, depth, 2] places."""

    operations: Integers
    bins: Integers
    levels: Numbers
    places: Numbers

    def pairs(self) -> Integers:
        """[n, depth, (operation, bin)]: which rates the images speak for."""
        return np.stack([self.operations, self.bins], axis=2)


def fresh_rates() -> Rates:
    """[operations, bins]: before anything is learnt, all bins are alike."""
    return np.ones((len(TABLE), BINS), np.float32)


def draws(depth: int) -> int:
    """Uniform numbers an image needs."""
    return PER_OPERATION * depth


def usable_shares(rates: Rates) -> Numbers:
    """[operations, bins] the probability of each bin: its rate, where that is near the operation's best."""
    shares = rates.astype(np.float64) + (1 - DECAY)  # as the official code: rates may all be zero
    shares /= shares.max(axis=1, keepdims=True)
    shares[shares < THRESHOLD] = 0
    return shares / shares.sum(axis=1, keepdims=True)


def choose(rates: Rates | None, uniform: Numbers, depth: int) -> Choice:
    """Operations drawn alike, and bins by their rates; without rates, bins alike. `uniform` is [n, draws(depth)]."""
    which, bin_draw, within, *place = (uniform[:, part * depth : (part + 1) * depth] for part in range(PER_OPERATION))
    operations = (which * len(TABLE)).astype(np.int64)
    shares = np.full((len(TABLE), BINS), 1 / BINS) if rates is None else usable_shares(rates)
    below = np.cumsum(shares, axis=1)[:, :-1]  # the last bin takes what rounding leaves
    bins = (bin_draw[:, :, None] >= below[operations]).sum(axis=2)
    return Choice(operations, bins, (bins + within) / BINS, np.stack(place, axis=2))


def apply(images: Bytes, choice: Choice, cut: Numbers | None = None, largest: float = 0.0) -> Bytes:
    """uint8 [n, S, S, C] → the same shape; with `cut` [n, 3], a square of up to `largest` is cut out at the end."""
    out = np.empty(images.shape, np.uint8)
    boxes = None if cut is None else change.cutout_boxes(cut, images.shape[1], largest)
    steps = zip(choice.operations.tolist(), choice.levels.tolist(), choice.places.tolist(), strict=True)
    for number, chosen in enumerate(steps):
        image = images[number]
        for which, level, place in zip(*chosen, strict=True):
            image = TABLE[which](image, level, place)
        out[number] = image if boxes is None else change.cutout(image, boxes[number])
    return out
