"""Defines the operations of strong views, as functions of one image and one argument.

They call albumentations' functions on arrays with arguments that we draw ourselves: its `Compose` takes longer than
augmenting a 32×32 image, and its random numbers would not be a pure function of the step. `randaugment` and `ctaugment`
draw the operation and its argument.

SimCLR's view (Chen et al. 2020, arXiv 2002.05709) is a resized crop, a flip, colour jitter, grey and blur. A crop of
`crop_scale` to 1 of the area, with a ratio of 3/4 to 4/3, is resized to the whole image. With probability .8,
brightness, contrast and saturation are multiplied by 1 ± .8 · `jitter` at most, and the hue turns by up to
.2 · `jitter` of the circle, in any order. With probability .2 the image becomes grey; with probability `blur` it is
blurred by a Gaussian of .1 to 2 pixels over a tenth of the side. The paper uses jitter 1 and blur .5 on ImageNet,
jitter .5 and no blur on CIFAR-10.

Deviations: if a large crop has no room for every ratio, a ratio that fits is drawn; the official code draws again until
one fits. Contrast is about the mean grey, as in torchvision, and not about each channel's mean.
"""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.settings.data import AugmentSettings

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import must not look for a newer version over the network

import albumentations.augmentations.dropout.functional as dropout
import albumentations.augmentations.geometric.functional as geometric
import albumentations.augmentations.pixel.functional as pixel

cv2.setNumThreads(0)  # OpenCV's threads would compete with the workers

Bytes = NDArray[np.uint8]
Boxes = NDArray[np.int64]
UNUSED = np.random.default_rng(0)  # albumentations' cutout requires it, but draws nothing for a fill of one number
GREY = 127.0  # fills a cut square
BLACK = 0.0  # fills the area that a shift uncovers
RAMP = np.arange(256, dtype=np.uint8)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # PIL's smoothing kernel, which sharpness blends with
CENTRE = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
RING = (np.ones((5, 5)) - np.pad(np.ones((3, 3)), 1)) / 16  # PIL's BLUR


def autocontrast(image: Bytes, _: float) -> Bytes:
    """Stretches each channel to the full range."""
    return pixel.auto_contrast(image, 0, None, "pil").reshape(image.shape)


def contrast(image: Bytes, factor: float) -> Bytes:
    """Blends the image with its mean grey."""
    return pixel.adjust_contrast_torchvision(image, factor)


def equalize(image: Bytes, _: float) -> Bytes:
    """Flattens each channel's histogram."""
    return np.asarray(pixel.equalize(image, mode="cv", by_channels=True), np.uint8)


def posterize(image: Bytes, bits: float) -> Bytes:
    """Keeps only the highest bits."""
    return pixel.posterize(image, int(bits))


@functools.cache
def _solarize_table(threshold: int) -> Bytes:
    return np.where(threshold <= RAMP, 255 - RAMP, RAMP)


def solarize(image: Bytes, threshold: float) -> Bytes:
    """Inverts the pixels from the threshold on: at 0 all of them, at 1 (256 of 256) none."""
    return np.asarray(cv2.LUT(image, _solarize_table(round(threshold * 256))), np.uint8).reshape(image.shape)


@functools.cache
def _brighter_shadows(addition: int) -> Bytes:
    return np.where(RAMP < 128, np.minimum(RAMP.astype(np.int64) + addition, 255), RAMP).astype(np.uint8)


def solarize_add(image: Bytes, addition: float) -> Bytes:
    """Adds a number to the pixels below 128."""
    return np.asarray(cv2.LUT(image, _brighter_shadows(int(addition))), np.uint8).reshape(image.shape)


def sharpness(image: Bytes, factor: float) -> Bytes:
    """Blends the image with its smoothed version: below 1 softer, above 1 sharper."""
    return pixel.convolve(image, factor * CENTRE + (1 - factor) * SMOOTH)


def turn_hue(image: Bytes, share: float) -> Bytes:
    """Moves every hue by a share of the circle; grey stays grey."""
    return image if image.shape[2] == 1 else np.asarray(pixel.adjust_hue_torchvision(image, share), np.uint8)


def blur(image: Bytes, share: float) -> Bytes:
    """Blends the image with its mean over rings of 5×5."""
    return pixel.convolve(image, share * RING + (1 - share) * np.pad(CENTRE, 1))


def blend(image: Bytes, other: Bytes, share: float) -> Bytes:
    """Mixes `share` of the other image with 1 - `share` of the image."""
    return np.asarray(cv2.addWeighted(image, 1 - share, other, share, 0), np.uint8).reshape(image.shape)


def invert(image: Bytes) -> Bytes:
    """Returns the negative."""
    return np.asarray(pixel.invert(image), np.uint8)


def magnify(image: Bytes, margin: float) -> Bytes:
    """Cuts off a margin (a share of the side) all around, and resizes to the old size."""
    top, left = int(image.shape[0] * margin), int(image.shape[1] * margin)
    inner = image[top : image.shape[0] - top, left : image.shape[1] - left]
    return np.asarray(geometric.resize(inner, image.shape[:2], cv2.INTER_LINEAR), np.uint8)


def warp(image: Bytes, matrix: list[list[float]], fill: float = BLACK) -> Bytes:
    """Applies an affine map, given from output to input coordinates."""
    size = (image.shape[1], image.shape[0])
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    warped = geometric.warp_affine_with_value_extension(image, np.array(matrix), size, flags, cv2.BORDER_CONSTANT, fill)
    return warped.reshape(image.shape)


def rotate(image: Bytes, degrees: float, fill: float = BLACK) -> Bytes:
    """Rotates the image about its centre."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    return warp(image, [[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]], fill)


def shear_x(image: Bytes, slope: float) -> Bytes:
    """Shifts rows in proportion to their distance from the middle."""
    return warp(image, [[1, slope, -slope * (image.shape[0] - 1) / 2], [0, 1, 0]])


def shear_y(image: Bytes, slope: float) -> Bytes:
    """Shifts columns in proportion to their distance from the middle."""
    return warp(image, [[1, 0, 0], [slope, 1, -slope * (image.shape[1] - 1) / 2]])


def translate_x(image: Bytes, share: float, fill: float = BLACK) -> Bytes:
    """Shifts the image sideways by a share of the width."""
    return warp(image, [[1, 0, share * image.shape[1]], [0, 1, 0]], fill)


def translate_y(image: Bytes, share: float, fill: float = BLACK) -> Bytes:
    """Shifts the image up or down by a share of the height."""
    return warp(image, [[1, 0, 0], [0, 1, share * image.shape[0]]], fill)


@dataclass(frozen=True)
class Operation:
    """An operation, its argument's range in FixMatch's paper, and the argument that changes nothing."""

    apply: Callable[[Bytes, float], Bytes]
    low: float = 0.0
    high: float = 0.0
    neutral: float = 0.0


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(lambda image, _: image),
    "autocontrast": Operation(autocontrast),
    "brightness": Operation(pixel.adjust_brightness_torchvision, 0.05, 0.95, neutral=1),
    "color": Operation(pixel.adjust_saturation_torchvision, 0.05, 0.95, neutral=1),
    "contrast": Operation(contrast, 0.05, 0.95, neutral=1),
    "equalize": Operation(equalize),
    "posterize": Operation(posterize, 4, 8, neutral=8),
    "rotate": Operation(rotate, -30, 30),
    "sharpness": Operation(sharpness, 0.05, 0.95, neutral=1),
    "shear_x": Operation(shear_x, -0.3, 0.3),
    "shear_y": Operation(shear_y, -0.3, 0.3),
    "solarize": Operation(solarize, 0, 1, neutral=1),
    "translate_x": Operation(translate_x, -0.3, 0.3),
    "translate_y": Operation(translate_y, -0.3, 0.3),
}


def cutout_boxes(draws: NDArray[np.float64], size: int, largest: float) -> Boxes:
    """Returns [n, 4] squares (x1, y1, x2, y2): any side up to `largest` of the image's, anywhere, cut at the border."""
    half = draws[:, 0] * largest * size / 2
    x, y = draws[:, 1] * size, draws[:, 2] * size
    return np.stack([x - half, y - half, x + half, y + half], axis=1).round().clip(0, size).astype(np.int64)


def fixed_boxes(draws: NDArray[np.float64], size: int, half: int) -> Boxes:
    """Returns [n, 4] squares of 2 · half pixels around any pixel, cut at the border, as in the official codes."""
    x, y = np.floor(draws[:, 0] * size), np.floor(draws[:, 1] * size)
    return np.stack([x - half, y - half, x + half, y + half], axis=1).clip(0, size).astype(np.int64)


def squares(draws: NDArray[np.float64], size: int, settings: AugmentSettings) -> Boxes | None:
    """Returns the squares to cut out at the end, from three numbers per image; None if the settings ask for none."""
    if not settings.cutout:
        return None
    if settings.random_cutout:
        return cutout_boxes(draws, size, settings.cutout)
    return fixed_boxes(draws[:, 1:], size, int(size * settings.cutout) // 2)


def cutout(image: Bytes, box: Boxes) -> Bytes:
    """Returns the image with a grey square."""
    return dropout.cutout(image, box[None], GREY, UNUSED)


Numbers = NDArray[np.float64]
SIMCLR_DRAWS = 17  # uniform numbers per image
RATIOS = (3 / 4, 4 / 3)
JITTER, TO_GREY = 0.8, 0.2  # probabilities
COLOURS = [OPERATIONS[name].apply for name in ("brightness", "contrast", "color")] + [turn_hue]
STRENGTHS = np.array([0.8, 0.8, 0.8, 0.2])


def crop_boxes(draws: Numbers, side: int, smallest: float) -> NDArray[np.int64]:
    """Returns [n, 4] (top, left, height, width) of crops of any area from `smallest` of the image's, at any place."""
    area = smallest + (1 - smallest) * draws[:, 0]
    low, high = np.log(np.maximum(RATIOS[0], area)), np.log(np.minimum(RATIOS[1], 1 / area))
    ratio = np.exp(low + (high - low) * draws[:, 1])
    sizes = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1) * side
    sizes = sizes.round().clip(1, side).astype(np.int64)
    return np.concatenate([(draws[:, 2:4] * (side + 1 - sizes)).astype(np.int64), sizes], axis=1)


def jitter_factors(draws: Numbers, strength: float) -> Numbers:
    """Returns [n, 4]: factors of brightness, contrast and saturation, and the hue's turn as a share of the circle."""
    reach = strength * STRENGTHS
    low = np.where(np.arange(4) < 3, np.maximum(0, 1 - reach), -reach)
    high = np.where(np.arange(4) < 3, 1 + reach, reach)
    return low + (high - low) * draws


def resized_crop(image: Bytes, top: int, left: int, height: int, width: int) -> Bytes:
    """Resizes a part of the image to the image's size."""
    part = image[top : top + height, left : left + width]
    whole = cv2.resize(part, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(whole, np.uint8).reshape(image.shape)


def grey(image: Bytes) -> Bytes:
    """Removes the colours."""
    return image if image.shape[2] == 1 else OPERATIONS["color"].apply(image, 0)


def blurred(image: Bytes, sigma: float) -> Bytes:
    """Smooths by a Gaussian over a tenth of the side; images of less than 20 pixels are unchanged."""
    width = 2 * (image.shape[0] // 10 // 2) + 1
    return np.asarray(cv2.GaussianBlur(image, (width, width), sigma), np.uint8).reshape(image.shape)


def simclr_view(images: Bytes, draws: Numbers, flip: bool, settings: AugmentSettings) -> Bytes:
    """Computes SimCLR's views, uint8 [n, S, S, C] → the same shape; `draws` are [n, SIMCLR_DRAWS] in [0, 1)."""
    boxes = crop_boxes(draws[:, :4], images.shape[1], settings.crop_scale).tolist()
    factors = jitter_factors(draws[:, 4:8], settings.jitter).tolist()
    orders = draws[:, 8:12].argsort(axis=1).tolist()
    happens = (draws[:, 12:16] < [0.5 * flip, JITTER * (settings.jitter > 0), TO_GREY, settings.blur]).tolist()
    sigmas = (0.1 + 1.9 * draws[:, 16]).tolist()
    out = np.empty(images.shape, np.uint8)
    for number, (mirrored, coloured, greyed, smoothed) in enumerate(happens):
        image = resized_crop(images[number], *boxes[number])
        if mirrored:
            image = np.asarray(cv2.flip(image, 1), np.uint8).reshape(image.shape)
        if coloured:
            for which in orders[number]:
                image = COLOURS[which](image, factors[number][which])
        if greyed:
            image = grey(image)
        out[number] = blurred(image, sigmas[number]) if smoothed else image
    return out
