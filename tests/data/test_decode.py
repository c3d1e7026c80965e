"""Odd but readable images are read right; unreadable ones say why."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from selftrain.ssl_tasks.data.decode import Decoder, quiet_decoding
from selftrain.ssl_tasks.data.sources.base import SUFFIXES

decode = Decoder(image_size=4, channels=3, max_pixels=1_000_000)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **save: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **save)
    return buffer.getvalue()


def pixels_of(data: bytes, channels: int = 3) -> np.ndarray:
    found = Decoder(4, channels, 1_000_000)(data)
    assert found.error is None
    assert found.pixels is not None
    return found.pixels


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = encoded(Image.new("RGB", (4, 4), RED).convert("CMYK"), "JPEG", quality=100)
    assert decode(data).mode == "CMYK"
    assert np.abs(pixels_of(data).astype(int) - np.array(RED)).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format: str) -> None:
    values = np.array([[0, 257, 32896, 65535]] * 4, np.uint16)
    found = pixels_of(encoded(Image.fromarray(values), format), channels=1)
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_palette_gives_its_colours() -> None:
    image = Image.new("RGB", (4, 4), RED).quantize(4)
    assert image.mode == "P"
    assert (pixels_of(encoded(image)) == RED).all()


def test_animation_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), (0, 0, 255))
    assert (pixels_of(encoded(first, "GIF", save_all=True, append_images=[second])) == RED).all()


def test_transparent_parts_become_white() -> None:
    image = Image.new("RGBA", (4, 4), (*RED, 255))
    image.paste((0, 255, 0, 0), (0, 0, 2, 4))
    found = pixels_of(encoded(image))
    assert (found[:, :2] == WHITE).all()
    assert (found[:, 2:] == RED).all()


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_a_transparent_colour_becomes_white(mode: str) -> None:
    image = Image.new("RGB", (4, 4), RED)
    image.paste((0, 0, 255), (0, 0, 2, 4))
    image = image.quantize(4) if mode == "P" else image
    clear = image.getpixel((0, 0)) if mode == "P" else (0, 0, 255)
    found = pixels_of(encoded(image, transparency=clear))
    assert (found[:, :2] == WHITE).all()
    assert (found[:, 2:] == RED).all()


def test_one_pixel_fills_the_image() -> None:
    assert (pixels_of(encoded(Image.new("RGB", (1, 1), RED))) == RED).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(format: str) -> None:
    image = Image.new("RGB", (8, 8), WHITE)
    image.paste(RED, (0, 0, 8, 4))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: red on the right
    found = Decoder(8, 3, 100)(encoded(image, format, exif=exif)).pixels
    assert found is not None
    assert found[:, 6:, 1].max() < 30
    assert found[:, :2, 1].min() > 225


def test_a_wide_image_is_cropped_to_its_centre() -> None:
    image = Image.new("RGB", (12, 4), WHITE)
    image.paste(RED, (4, 0, 8, 4))
    found = decode(encoded(image))
    assert (found.width, found.height) == (12, 4)
    assert (pixels_of(encoded(image)) == RED).all()


def test_grey_and_colour_files_of_one_image_have_one_content() -> None:
    grey = Image.new("L", (4, 4), 77)
    assert decode(encoded(grey)).content == decode(encoded(grey.convert("RGB"), "BMP")).content


def test_same_pixels_in_another_shape_are_another_content() -> None:
    contents = {decode(encoded(Image.new("L", size, 77))).content for size in ((2, 8), (8, 2), (4, 4))}
    assert len(contents) == 3


def test_corrupt_exif_does_not_make_an_image_unreadable() -> None:
    data = encoded(Image.new("RGB", (4, 4), RED), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    with quiet_decoding():
        assert decode(data).error is None


def truncated_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    return data[: len(data) // 2]


def bomb() -> bytes:
    """20,000 x 20,000 pixels in a few bytes."""
    return encoded(Image.new("1", (20_000, 20_000)), "PNG")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (truncated_jpeg(), "truncated"),
        (b"", "empty file"),
        (b"Dear diary, this is a text.", "not an image"),
        (bomb(), "20000x20000 = 400,000,000 pixels is more than max_pixels"),
        (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point"),
    ],
    ids=["truncated", "empty", "text", "bomb", "float"],
)
def test_unreadable_images_say_why_the_same_way_every_time(data: bytes, why: str) -> None:
    first, second = decode(data), decode(bytes(bytearray(data)))
    assert first.pixels is None
    assert why in (first.error or "")
    assert first.error == second.error
    assert " at 0x" not in (first.error or "")


@pytest.mark.parametrize("seed", range(30))
def test_no_bytes_make_the_decoder_raise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    formats = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
    data = bytearray(encoded(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)), formats[seed % len(formats)]))
    for at in rng.integers(0, len(data), 8):
        data[at] = rng.integers(0, 256)
    with quiet_decoding():
        found = decode(bytes(data))
    assert (found.pixels is None) == (found.error is not None)


def test_what_pillow_would_hand_to_another_program_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, mark = tmp_path / "gs", tmp_path / "was started"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow remembers whether there is one
    found = decode(encoded(Image.new("RGB", (4, 4), RED), "EPS"))
    assert found.error is not None
    assert found.error.startswith("not an image of a known format")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_that_is_listed_can_be_read(suffix: str) -> None:
    format = Image.registered_extensions()[suffix]
    assert decode(encoded(Image.new("RGB", (4, 4), RED), format)).error is None


def test_a_crop_leaves_the_centre_and_an_interpolation_changes_the_pixels() -> None:
    square = np.full((40, 60, 3), 100, np.uint8)
    square[10:30, 20:40] = 200  # the centre, half of the shorter side
    data = encoded(Image.fromarray(square), "PNG")
    whole, half = (Decoder(20, 3, 100_000, crop=crop)(data).pixels for crop in (1.0, 0.5))
    assert whole is not None
    assert half is not None
    assert (whole[0, 0] == 100).all()
    assert (whole[10, 10] == 200).all()
    assert (half == 200).all()
    noise = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)), "PNG")
    found = [Decoder(20, 3, 100_000, kind)(noise).pixels for kind in ("bilinear", "bicubic", "lanczos")]
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])
