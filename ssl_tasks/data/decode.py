"""Decodes image files to square uint8 pixels.

Common formats and oddities (EXIF rotation, CMYK, 16 bit, palettes) are read correctly; an unreadable file gets a
reason.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

Interpolation = Literal["bilinear", "bicubic", "lanczos"]
VERSION = 1  # version of the decoding; a new one makes new decoded caches

# Pillow's own limit warns at one size and fails at another; ours is a setting and only fails.
Image.MAX_IMAGE_PIXELS = None

# Those of `places.SUFFIXES`. Pillow knows others by a file's content, and hands one of them (EPS) to another program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "TGA", "AVIF")

GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I"})
SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})  # Pillow gives some 16-bit files as mode I


class Unreadable(Exception):
    """An image that cannot be used; the message is the reason, the same on every machine and day."""


@dataclass(frozen=True)
class Decoded:
    """One decoded image; for an unreadable image, only `error` is set."""

    pixels: np.ndarray | None = None  # uint8 [S, S, C]
    content: bytes = b""  # 16 bytes that identify the pixels in full size
    width: int = -1
    height: int = -1
    mode: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Decoder:
    """Reads every image of a data set alike: turned upright, converted, resized by its shorter side and cropped."""

    image_size: int
    channels: int
    max_pixels: int
    interpolation: Interpolation = "bilinear"
    crop: float = 1.0  # share of the shorter side that is left

    @property
    def resizing(self) -> dict[str, Any]:
        """Returns the resizing's settings that are not at their defaults, for a data set's key and a model's card."""
        usual = {"interpolation": "bilinear", "crop": 1.0}
        return {name: value for name, default in usual.items() if (value := getattr(self, name)) != default}

    def __call__(self, data: bytes | np.ndarray) -> Decoded:
        try:
            image = open_image(data, self.max_pixels)
            mode = image.mode  # loading may change it
            upright = convert(ImageOps.exif_transpose(image), self.channels)
            whole = np.asarray(upright)
            size = self.image_size
            as_it_is = upright.size == (size, size) and self.crop == 1
            square = whole if as_it_is else np.asarray(fit_square(upright, size, self.interpolation, self.crop))
            pixels = square.reshape(size, size, self.channels)
            return Decoded(pixels, name_pixels(whole), image.width, image.height, mode)
        except Exception as error:  # noqa: BLE001 - hostile bytes make a decoder raise almost anything
            return Decoded(error=reason(error))


def open_image(data: bytes | np.ndarray, max_pixels: int) -> Image.Image:
    """Returns the image with its header read and its pixels not, an animation at its first frame; raises Unreadable."""
    if isinstance(data, np.ndarray):
        return Image.fromarray(data.squeeze(-1) if data.ndim == 3 and data.shape[-1] == 1 else data)
    if not data:
        raise Unreadable("empty file (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.UnidentifiedImageError, KeyError) as error:  # KeyError: an old Pillow does not know AVIF
        raise Unreadable(f"not an image of a known format: it begins with {bytes(data[:8])!r}") from error
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height} = {image.width * image.height:,} pixels"
        raise Unreadable(f"{size} is more than max_pixels ({max_pixels:,})")
    return image


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Converts to 8-bit grey or RGB; transparent parts become white, 16 bits are scaled to 8."""
    if image.mode.startswith("F"):
        raise Unreadable("floating-point pixels have no fixed scale; convert the image to 8 or 16 bits")
    if image.mode in SIXTEEN_BIT:
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    elif image.mode not in {"L", "RGB", "1"}:
        image = image.convert("RGB")
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def fit_square(
    image: Image.Image, size: int, interpolation: Interpolation = "bilinear", crop: float = 1.0
) -> Image.Image:
    """Returns the central square, resized to `size`; it is `crop` of the shorter side wide."""
    return ImageOps.fit(image, (size, size), Image.Resampling[interpolation.upper()], bleed=(1 - crop) / 2)


def name_pixels(pixels: np.ndarray) -> bytes:
    """Returns 16 bytes that identify an image by its pixels in full size."""
    name = hashlib.sha256(str(pixels.shape).encode())
    name.update(np.ascontiguousarray(pixels).data)
    return name.digest()[:16]


def probe(data: bytes | np.ndarray, max_pixels: int) -> tuple[int, bool]:
    """Returns the shorter side and whether the image is grey, from its header alone; raises what a decoder raises."""
    image = open_image(data, max_pixels)
    return min(image.size), image.mode in GREY_MODES


def reason(error: BaseException) -> str:
    """Returns why an image cannot be read, without the object addresses that some messages contain."""
    text = re.sub(r"\s*<[^<>]* at 0x[0-9a-f]+>", "", str(error)).strip()
    if isinstance(error, Unreadable):
        return text
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or type(error).__name__  # without the path, which is valid on one machine only
    return text or type(error).__name__


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Silences Pillow's warnings about corrupt metadata; enter it before threads start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        yield
