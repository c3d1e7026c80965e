"""The weak view of FixMatch and its kin: a flip where that is right, and a crop of the image padded by reflection."""

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
DRAWS = 3  # uniform numbers an image needs


def weak_view(images: Bytes, draws: NDArray[np.float64], flip: bool, crop_padding: float) -> Bytes:
    """Flipped with probability ½ and shifted by up to `crop_padding` of the side; draws are [n, 3] in [0, 1)."""
    height, width = images.shape[1:3]
    pad_y, pad_x = int(height * crop_padding), int(width * crop_padding)
    tops = (draws[:, 1] * (2 * pad_y + 1)).astype(np.int64).tolist()
    lefts = (draws[:, 2] * (2 * pad_x + 1)).astype(np.int64).tolist()
    flipped = ((draws[:, 0] < 0.5) & flip).tolist()
    out = np.empty(images.shape, np.uint8)  # in C order, whatever the order of the images
    for number, (top, left, mirror) in enumerate(zip(tops, lefts, flipped, strict=True)):
        # Image by image: a padded copy of the whole batch would leave the cache, and take ten times longer at 224×224.
        padded = cv2.copyMakeBorder(images[number], pad_y, pad_y, pad_x, pad_x, cv2.BORDER_REFLECT_101)
        crop = padded[top : top + height, left : left + width]
        if mirror:
            cv2.flip(crop, 1, dst=out[number])
        else:
            out[number] = crop.reshape(out[number].shape)
    return out
