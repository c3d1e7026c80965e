"""The weak view of FixMatch and its kin: a flip where that is right, and a crop of the image padded by reflection."""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
DRAWS = 3  # uniform numbers an image needs


def weak_view(images: Bytes, draws: NDArray[np.float64], flip: bool, crop_padding: float) -> Bytes:
    """Flipped with probability ½ and shifted by up to `crop_padding` of the side; draws are [n, 3] in [0, 1)."""
    height, width = images.shape[1:3]
    pad_y, pad_x = int(height * crop_padding), int(width * crop_padding)
    padded = np.pad(images, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="reflect")
    tops = (draws[:, 1] * (2 * pad_y + 1)).astype(np.int64)
    lefts = (draws[:, 2] * (2 * pad_x + 1)).astype(np.int64)
    flipped = (draws[:, 0] < 0.5) & flip
    out = np.empty_like(images)
    for image, source, top, left, mirror in zip(
        out, padded, tops.tolist(), lefts.tolist(), flipped.tolist(), strict=True
    ):
        crop = source[top : top + height, left : left + width]
        image[:] = crop[:, ::-1] if mirror else crop
    return out
