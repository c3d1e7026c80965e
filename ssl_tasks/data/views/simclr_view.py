"""SimCLR's view (Chen et al. 2020, arXiv 2002.05709): a resized crop, a flip, colour jitter, grey, and blur.

A crop of `crop_scale` to 1 of the area and of a ratio of 3/4 to 4/3 becomes the whole image again. With probability .8
brightness, contrast and saturation are multiplied by 1 ± .8 · `jitter` at the most, and the hue turns by up to
.2 · `jitter` of the circle, in any order. With probability .2 the image becomes grey, with probability `blur` it is
blurred by a Gaussian of .1 to 2 pixels over a tenth of the side. The paper has jitter 1 and blur .5 on ImageNet,
jitter .5 and no blur on CIFAR-10.

Deviations: where a large crop has no room for every ratio, one that fits is drawn; the official code draws anew until
one fits. Contrast turns about the mean grey, as in torchvision, and not about each channel's mean.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.views.augmentation import OPERATIONS, Bytes, turn_hue
from selftrain.ssl_tasks.settings.data import AugmentSettings

Numbers = NDArray[np.float64]
DRAWS = 17  # uniform numbers an image needs
RATIOS = (3 / 4, 4 / 3)
JITTER, TO_GREY = 0.8, 0.2  # the probabilities
COLOURS = [OPERATIONS[name].apply for name in ("brightness", "contrast", "color")] + [turn_hue]
STRENGTHS = np.array([0.8, 0.8, 0.8, 0.2])


def crop_boxes(draws: Numbers, side: int, smallest: float) -> NDArray[np.int64]:
    """[n, 4] (top, left, height, width) of crops of any area from `smallest` of the image's, at any place."""
    area = smallest + (1 - smallest) * draws[:, 0]
    low, high = np.log(np.maximum(RATIOS[0], area)), np.log(np.minimum(RATIOS[1], 1 / area))
    ratio = np.exp(low + (high - low) * draws[:, 1])
    sizes = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1) * side
    sizes = sizes.round().clip(1, side).astype(np.int64)
    return np.concatenate([(draws[:, 2:4] * (side + 1 - sizes)).astype(np.int64), sizes], axis=1)


def jitter_factors(draws: Numbers, strength: float) -> Numbers:
    """[n, 4]: what brightness, contrast and saturation are multiplied by, and by how much of a circle the hue turns."""
    reach = strength * STRENGTHS
    low = np.where(np.arange(4) < 3, np.maximum(0, 1 - reach), -reach)
    high = np.where(np.arange(4) < 3, 1 + reach, reach)
    return low + (high - low) * draws


def resized_crop(image: Bytes, top: int, left: int, height: int, width: int) -> Bytes:
    """A part of the image at the image's size."""
    part = image[top : top + height, left : left + width]
    whole = cv2.resize(part, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(whole, np.uint8).reshape(image.shape)


def grey(image: Bytes) -> Bytes:
    """Without its colours."""
    return image if image.shape[2] == 1 else OPERATIONS["color"].apply(image, 0)


def blurred(image: Bytes, sigma: float) -> Bytes:
    """Smoothed by a Gaussian over a tenth of the side; images of less than 20 pixels stay as they are."""
    width = 2 * (image.shape[0] // 10 // 2) + 1
    return np.asarray(cv2.GaussianBlur(image, (width, width), sigma), np.uint8).reshape(image.shape)


def simclr_view(images: Bytes, draws: Numbers, flip: bool, settings: AugmentSettings) -> Bytes:
    """uint8 [n, S, S, C] → the same shape; `draws` are [n, DRAWS] in [0, 1)."""
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
