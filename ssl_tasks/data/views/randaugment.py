"""Implements RandAugment (arXiv 1909.13719) and its variants: N random operations, then a square that is cut out.

`randaugment` with a random magnitude draws each argument from the whole range in FixMatch's paper, as TorchSSL and USB
do (with three operations). The others follow the official codes, which have 10 levels:
- `randaugment` with a magnitude M: Noisy Student's, at level M. A level beyond 10 goes beyond the ranges on purpose.
- `meta_pseudo_labels`: the same without `solarize_add`. An operation is applied with a probability that is drawn for
  each image from .2 to .8.
- `fixmatch`: a whole level from 1 to 9 for each operation, which is applied with probability .5. kekmodel's port has
  these probabilities and levels with the printed ranges.
- `uda`: as `fixmatch`, with `invert` and `cutout` in the place of `identity`.
The official codes cut out a fixed square of half the side (kekmodel's too); TorchSSL and USB a square of any side up
to that. docs/augmentation.md has every operation's argument beside the official one.

Deviations: a byte saturates where the official codes overflow: from level 10 on their solarize takes its threshold
modulo 256, from 22.5 on their posterize keeps one bit, and Meta Pseudo Labels' factors above 1 do not saturate.
Contrast turns about the mean grey as in PIL; the TensorFlow codes take the number of pixels / 256 for that mean.
Weak changes come before strong ones, as in FixMatch; Noisy Student and UDA crop and flip afterwards. What a movement
uncovers is grey, for good: in the codes on PIL a later change of the colours may leave it black.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.views import augmentation as change
from selftrain.ssl_tasks.data.views.augmentation import GREY, OPERATIONS, Bytes
from selftrain.ssl_tasks.settings.data import AugmentSettings

Numbers = NDArray[np.float64]
Place = list[float]
Change = Callable[[Bytes, float, Place], Bytes]
Curve = Callable[[float, int], float]  # level, the image's side → the operation's argument
LEVELS = tuple(float(level) for level in range(1, 10))  # of 10, for a random magnitude
SMALL = 64  # pixels of a side: up to here, constants are the official code's for CIFAR, beyond for ImageNet


def plain(apply: Callable[[Bytes, float], Bytes]) -> Change:
    """Wraps an operation that needs no place."""
    return lambda image, value, _: apply(image, value)


def shear_x(image: Bytes, slope: float) -> Bytes:
    """Shifts rows in proportion to their distance from the top, as PIL does with the official codes' matrix."""
    return change.warp(image, [[1, slope, slope / 2], [0, 1, 0]], GREY)


def shear_y(image: Bytes, slope: float) -> Bytes:
    """Shifts columns in proportion to their distance from the left."""
    return change.warp(image, [[1, 0, 0], [slope, 1, slope / 2]], GREY)


def cut(image: Bytes, half: float, place: Place) -> Bytes:
    """Fills a square of 2 · half pixels at a random place with grey."""
    return change.cutout(image, change.fixed_boxes(np.array([place]), image.shape[0], int(half))[0])


def moved(apply: Callable[[Bytes, float, float], Bytes]) -> Change:
    """Wraps a movement so that the uncovered area is grey."""
    return lambda image, value, _: apply(image, value, GREY)


PRINTED = [plain(operation.apply) for operation in OPERATIONS.values()]
LOW, HIGH = (np.array([getattr(operation, end) for operation in OPERATIONS.values()]) for end in ("low", "high"))
CHANGES: dict[str, Change] = {
    **dict(zip(OPERATIONS, PRINTED, strict=True)),
    "cutout": cut,
    "invert": plain(lambda image, _: change.invert(image)),
    "rotate": moved(change.rotate),
    "shear_x": plain(shear_x),
    "shear_y": plain(shear_y),
    "solarize_add": plain(change.solarize_add),
    "translate_x": moved(change.translate_x),
    "translate_y": moved(change.translate_y),
}
SIGNED = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}  # applied with a random sign


def nothing(level: float, side: int) -> float:
    """Returns 0, for operations without an argument."""
    return 0.0


def enhanced(level: float, side: int) -> float:
    """Returns the factor of a level; level 5 gives 1, which changes nothing."""
    return level * 1.8 / 10 + 0.1


def slope(level: float, side: int) -> float:
    """Returns the shear in pixels per row."""
    return level * 0.3 / 10


def tensorflow_shift(level: float, side: int) -> float:
    """Returns a share of the side: an eighth at level 10, or ImageNet's 100 pixels of 224."""
    return level / 10 * (side // 8 / side if side <= SMALL else 100 / 224)


def tensorflow_half(level: float, side: int) -> float:
    """Returns half the side of the square in pixels: an eighth of the image's at level 10, or ImageNet's 40 of 224."""
    return int(level / 10 * (side // 8 if side <= SMALL else 40 * side / 224))


def pil_shift(level: float, side: int) -> float:
    """Returns a share of the side: a pixel of 32 a level."""
    return int(level) / 32


def pil_half(level: float, side: int) -> float:
    """Returns half the side of the square in pixels; the side grows by 2 of 32 pixels per level."""
    return int(level * 20 / 10) * side // 32 // 2


ALIKE: dict[str, Curve] = {
    **dict.fromkeys(("autocontrast", "equalize"), nothing),
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), enhanced),
    **dict.fromkeys(("shear_x", "shear_y"), slope),
}
PIL: dict[str, Curve] = {  # of FixMatch and UDA, for images of 32×32
    **ALIKE,
    "posterize": lambda level, side: 4 - int(level * 4 / 10),
    "rotate": lambda level, side: int(level * 30 / 10),
    "solarize": lambda level, side: 1 - int(level * 256 / 10) / 256,
    **dict.fromkeys(("translate_x", "translate_y"), pil_shift),
}
TENSORFLOW: dict[str, Curve] = {  # of Noisy Student and Meta Pseudo Labels: bits and threshold rise with the level
    **ALIKE,
    "cutout": tensorflow_half,
    "invert": nothing,
    "posterize": lambda level, side: min(8, max(1, int(level / 10 * 4))),
    "rotate": lambda level, side: level * 30 / 10,
    "solarize": lambda level, side: min(256, int(level / 10 * 256)) / 256,
    **dict.fromkeys(("translate_x", "translate_y"), tensorflow_shift),
}


@dataclass(frozen=True)
class Official:
    """An official code: its operations, and the bounds of the probability of applying them, drawn for each image."""

    curves: dict[str, Curve]
    probability: tuple[float, float]


OFFICIAL = {
    "fixmatch": Official({"identity": nothing, **PIL}, (0.5, 0.5)),
    "uda": Official({**PIL, "cutout": pil_half, "invert": nothing}, (0.5, 0.5)),
    "meta_pseudo_labels": Official(TENSORFLOW, (0.2, 0.8)),
    "randaugment": Official({**TENSORFLOW, "solarize_add": lambda level, side: int(level / 10 * 110)}, (1.0, 1.0)),
}


@dataclass(frozen=True)
class Choice:
    """The choice for each image: [n, N] operations of a table, their arguments, and [n, N, 2] places."""

    table: list[Change]
    operations: NDArray[np.int64]
    arguments: Numbers
    places: Numbers


@functools.cache
def argument_table(name: str, levels: tuple[float, ...], side: int) -> Numbers:
    """Returns the arguments [operations, levels] of an official code."""
    return np.array([[curve(level, side) for level in levels] for curve in OFFICIAL[name].curves.values()])


def randaugment_draws(settings: AugmentSettings) -> int:
    """Returns the number of uniform numbers per image."""
    if not settings.printed_ranges:
        return 6 * settings.operations + 4
    return (2 if settings.probability in (None, 1) else 3) * settings.operations + 3


def choose(uniform: Numbers, side: int, settings: AugmentSettings) -> Choice:
    """Draws operations and their arguments from [n, randaugment_draws - 3] numbers in [0, 1)."""
    return _printed(uniform, settings) if settings.printed_ranges else _official(uniform, side, settings)


def _printed(uniform: Numbers, settings: AugmentSettings) -> Choice:
    count = settings.operations
    operations = (uniform[:, :count] * len(PRINTED)).astype(np.int64)
    arguments = LOW[operations] + uniform[:, count : 2 * count] * (HIGH[operations] - LOW[operations])
    probability = 1.0 if settings.probability is None else settings.probability
    if probability < 1:
        operations[uniform[:, 2 * count :] >= probability] = list(OPERATIONS).index("identity")
    return Choice(PRINTED, operations, arguments, np.zeros((*operations.shape, 2)))


def _official(uniform: Numbers, side: int, settings: AugmentSettings) -> Choice:
    count, official = settings.operations, OFFICIAL[settings.strong]
    which, level, sign, taken, *place = (uniform[:, part * count : (part + 1) * count] for part in range(6))
    levels = LEVELS if settings.magnitude == "random" else (float(settings.magnitude),)
    table = argument_table(settings.strong, levels, side)
    operations = (which * len(table)).astype(np.int64)
    negative = np.array([name in SIGNED for name in official.curves])[operations] & (sign < 0.5)
    arguments = table[operations, (level * len(levels)).astype(np.int64)] * np.where(negative, -1, 1)
    low, high = official.probability if settings.probability is None else (settings.probability,) * 2
    changes = [CHANGES[name] for name in official.curves]
    operations[taken >= low + uniform[:, 6 * count :] * (high - low)] = len(changes)
    return Choice([*changes, CHANGES["identity"]], operations, arguments, np.stack(place, axis=2))


def randaugment_view(images: Bytes, draws: Numbers, settings: AugmentSettings) -> Bytes:
    """Applies N operations drawn with replacement, then cuts out a square; `draws` are [n, randaugment_draws]."""
    choice = choose(draws[:, :-3], images.shape[1], settings)
    boxes = change.squares(draws[:, -3:], images.shape[1], settings)
    out = np.empty(images.shape, np.uint8)
    steps = zip(choice.operations.tolist(), choice.arguments.tolist(), choice.places.tolist(), strict=True)
    for number, chosen in enumerate(steps):
        image = images[number]
        for which, value, place in zip(*chosen, strict=True):
            image = choice.table[which](image, value, place)
        out[number] = image if boxes is None else change.cutout(image, boxes[number])
    return out
