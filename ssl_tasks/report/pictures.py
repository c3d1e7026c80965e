"""Packs thumbnails into a few sprites, small enough for a page sent by mail, and embeds JSON safely in a page.

The JSON has no character that HTML could read as markup, and no NaN or infinity.
"""

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selftrain.ssl_tasks.report.data import Pictures

Load = Callable[[NDArray[np.int64]], NDArray[np.uint8]]  # positions → [n, S, S, C]

LARGEST_TILE = 96
COLUMNS = 16
LOSSLESS_TILE = 16  # tiles so small that JPEG artefacts would be visible; PNG is small enough
QUALITIES = (88, 70, 50, 30)
TILE_MULTIPLE = 8  # size of JPEG's blocks, so that no tile bleeds into its neighbour


@dataclass(frozen=True)
class Encoding:
    """The format, size and quality of sprites."""

    format: str
    quality: int

    def uri(self, sheet: NDArray[np.uint8]) -> str:
        """Returns the data URI of one sprite."""
        stream = io.BytesIO()
        image = Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)
        if self.format == "png":
            image.save(stream, "PNG", optimize=True)
        else:
            image.save(stream, "JPEG", quality=self.quality, subsampling=0)
        return f"data:image/{self.format};base64,{base64.b64encode(stream.getvalue()).decode()}"


def make_sheets(load: Load, positions: NDArray[np.int64]) -> tuple[list[NDArray[np.uint8]], int]:
    """Returns the images at `positions`, in order, as arrays of COLUMNS × COLUMNS tiles, and the side of a tile."""
    each, sheets, tile = COLUMNS**2, [], LARGEST_TILE
    for start in range(0, len(positions), each):
        images = load(positions[start : start + each])
        tile = tile_side(images.shape[1])
        sheets.append(lay_out([fit(image, tile) for image in images], tile))
    return sheets, tile


def encode_sheets(sheets: list[NDArray[np.uint8]], tile: int, most_bytes: int) -> Pictures:
    """Encodes sheets as sprites, with lower quality until they fit, then without the last ones."""
    kinds = [Encoding("png", 0)] if tile <= LOSSLESS_TILE else [Encoding("jpeg", quality) for quality in QUALITIES]
    sprites: list[str] = []
    for kind in kinds:
        sprites = [kind.uri(sheet) for sheet in sheets]
        if sum(map(len, sprites)) <= most_bytes:
            break
    while sum(map(len, sprites)) > most_bytes:
        sprites.pop()
    return Pictures(tile, COLUMNS, tuple(sprites))


def tile_side(image_size: int) -> int:
    """Returns the side of a tile: a multiple of JPEG's block, not much larger than the image."""
    return min(LARGEST_TILE, -(-image_size // TILE_MULTIPLE) * TILE_MULTIPLE)


def fit(image: NDArray[np.uint8], tile: int) -> NDArray[np.uint8]:
    """Resizes an image to a tile: a larger image is averaged, a smaller one enlarged by whole pixels."""
    if image.shape[0] == tile:
        return image
    channels = image.shape[-1]
    kind = Image.Resampling.BOX if image.shape[0] > tile else Image.Resampling.NEAREST
    small = Image.fromarray(image.squeeze(-1) if channels == 1 else image).resize((tile, tile), kind)
    return np.asarray(small).reshape(tile, tile, channels)


def lay_out(tiles: list[NDArray[np.uint8]], tile: int) -> NDArray[np.uint8]:
    """Arranges tiles in rows from the top left, and cuts empty rows off at the end."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.zeros((rows * tile, COLUMNS * tile, tiles[0].shape[-1]), np.uint8)
    for number, image in enumerate(tiles):
        top, left = number // COLUMNS * tile, number % COLUMNS * tile
        sheet[top : top + tile, left : left + tile] = image
    return sheet


def embed(value: Any) -> str:
    """Returns JSON that no HTML parser can misread, whatever text the data contains."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Half of a surrogate pair, from a file name that is not UTF-8, cannot be encoded.
    return text.encode("utf-8", "backslashreplace").decode()


def size(value: Any) -> int:
    """Returns the bytes of a value in the page."""
    return len(embed(value).encode())


def finite(value: Any) -> Any:
    """Replaces NaN and infinity by null, because JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
