"""Coloured shapes in noise: every image is a function of its number, drawn many at once."""

import colorsys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selftrain.ssl_tasks.data.sources.base import DrawnSource, Listing
from selftrain.ssl_tasks.settings.data import SyntheticSource
from selftrain.ssl_tasks.store.artifacts import digest_json
from selftrain.ssl_tasks.store.file_digests import FileDigests

SHAPES = 8
TEST_NUMBERS = 1 << 40  # test images are counted from here, so that a larger training set leaves them as they are
TOGETHER = 1 << 20  # pixels drawn at a time
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Synthetic(DrawnSource):
    """Class k has shape k mod 8 and a hue of its own; place, size, brightness and noise come from the number."""

    def __init__(self, settings: SyntheticSource) -> None:
        self.settings = settings
        self.shape = (settings.image_size, 3)

    def fingerprint(self, files: FileDigests) -> str:
        return digest_json({"drawn as": 1, "look": self.settings.identity()})

    def listing(self) -> Listing:
        settings = self.settings
        names = [f"class-{number:03d}" for number in range(settings.classes)]
        numbers = np.concatenate([np.arange(settings.size), np.arange(settings.test_size)])
        part = np.repeat([0, 1], [settings.size, settings.test_size])
        digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 12, "0")
        ids = pc.binary_join_element_wise(pa.array(["train/", "test/"]).take(pa.array(part)), digits, "")
        labels = pa.array(names).take(pa.array(numbers % settings.classes))
        splits = pa.array([None, "test"]).take(pa.array(part))
        return Listing.of(ids, labels, splits, ids, classes=tuple(names))

    def draw(self, uris: Sequence[str]) -> np.ndarray:
        numbers = np.array([_number(uri) for uri in uris], np.int64)
        size = self.settings.image_size
        images = np.empty((len(numbers), size, size, 3), np.uint8)
        step = max(1, TOGETHER // (size * size * 3))
        for start in range(0, len(numbers), step):
            images[start : start + step] = self._draw(numbers[start : start + step])
        return images

    def _draw(self, numbers: np.ndarray) -> np.ndarray:
        settings, size, n = self.settings, self.settings.image_size, len(numbers)
        labels = numbers % TEST_NUMBERS % settings.classes
        mixed = scramble(numbers.astype(np.uint64) + scramble(np.array([settings.seed], np.uint64)) * GOLDEN)
        chance = [((mixed >> np.uint64(16 * part)) & np.uint64(0xFFFF)).astype(np.float32) / 65536 for part in range(4)]
        radius = 0.45 + 0.35 * chance[2]
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        u = (axis - ((1 - radius) * (2 * chance[0] - 1))[:, None]) / radius[:, None]  # [n, columns]
        v = (axis - ((1 - radius) * (2 * chance[1] - 1))[:, None]) / radius[:, None]  # [n, rows]
        inside = np.empty((n, size, size), bool)
        for shape in np.unique(labels % SHAPES).tolist():
            members = labels % SHAPES == shape
            inside[members] = covers(shape, u[members][:, None, :], v[members][:, :, None])
        ground = (0.2 + 0.4 * chance[3])[:, None, None, None]
        image = np.where(inside[..., None], palette(settings.classes)[labels][:, None, None, :], ground)
        if settings.noise:
            image += np.float32(settings.noise) * noise(mixed, size * size * 3).reshape(image.shape)
        return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _number(uri: str) -> int:
    part, _, number = uri.partition("/")
    return int(number) + (TEST_NUMBERS if part == "test" else 0)


def palette(classes: int) -> np.ndarray:
    """float32 [classes, 3]: one hue for every eight classes."""
    hues = -(-classes // SHAPES)
    colours = [colorsys.hsv_to_rgb(label // SHAPES / hues, 0.8, 0.95) for label in range(classes)]
    return np.array(colours, np.float32)


def covers(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points lie inside a shape of radius 1 about the origin."""
    across, down = np.abs(u), np.abs(v)
    box = np.maximum(across, down) < 1
    match shape:
        case 0:
            return u**2 + v**2 < 1  # disk
        case 1:
            return np.maximum(across, down) < 0.85  # square
        case 2:
            return across + down < 1.1  # diamond
        case 3:
            return np.abs(u**2 + v**2 - 0.65) < 0.35  # ring
        case 4:
            return box & (down < 0.35)  # lying bar
        case 5:
            return box & (across < 0.35)  # standing bar
        case 6:
            return box & (np.minimum(across, down) < 0.25)  # cross
        case _:
            return box & (u * v > 0)  # two squares, corner to corner


def scramble(values: np.ndarray) -> np.ndarray:
    """SplitMix64: uint64 in, uint64 out that look random."""
    values = values * GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def noise(seeds: np.ndarray, count: int) -> np.ndarray:
    """float32 [n, count] of mean 0 and deviation 1, triangular: a counter mixed with each image's seed (Murmur3)."""
    counter = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
    mixed = (seeds ^ (seeds >> np.uint64(32))).astype(np.uint32)[:, None] ^ counter
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    total = (mixed & np.uint32(0xFFFF)) + (mixed >> np.uint32(16))
    return (total.astype(np.float32) - np.float32(65535)) * np.float32(6**0.5 / 65536)
