"""Provides sources without the user's own files: scikit-learn's digits, synthetic shapes, torchvision's data sets.

Digits are 1,797 grey images of 8×8 pixels that come with scikit-learn. Synthetic images are coloured shapes in noise;
each is a function of its number. torchvision's data sets are read from a local folder, and downloaded into it if there
is a network.
"""

import colorsys
import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selftrain.ssl_tasks.data.sources.base import DrawnSource, ImageSource, Listing, existing
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.data import DigitsSource, SyntheticSource, TorchvisionSource
from selftrain.ssl_tasks.store.artifacts import digest_json
from selftrain.ssl_tasks.store.file_digests import FileDigests


class Digits(ImageSource):
    """scikit-learn's digits; each process that needs them reads them again."""

    flip = False
    shape = (8, 1)

    def __init__(self, settings: DigitsSource) -> None:
        self.settings = settings

    def __reduce__(self) -> tuple[type["Digits"], tuple[DigitsSource]]:
        return type(self), (self.settings,)

    @cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # a second of imports that only this source needs

        images, labels = load_digits(return_X_y=True)
        return np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels

    def fingerprint(self, files: FileDigests) -> str:
        return "scikit-learn digits"  # the set never changes

    def listing(self) -> Listing:
        labels = [str(label) for label in self._data[1]]
        ids = [f"digits/{number:04d}" for number in range(len(labels))]
        return Listing.of(ids, labels, [None] * len(ids), ids, classes=tuple("0123456789"))

    def read(self, uri: str) -> np.ndarray:
        return self._data[0][int(uri.rpartition("/")[2])]


SHAPES = 8
TEST_NUMBERS = 1 << 40  # the first test image's number, so that a larger training set does not change test images
TOGETHER = 1 << 20  # pixels drawn at a time
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Synthetic(DrawnSource):
    """Synthetic images: class k has shape k mod 8 and its own hue; the number decides place, size and noise."""

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
    """Returns float32 [classes, 3]: one hue for every eight classes."""
    hues = -(-classes // SHAPES)
    colours = [colorsys.hsv_to_rgb(label // SHAPES / hues, 0.8, 0.95) for label in range(classes)]
    return np.array(colours, np.float32)


def covers(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns which points lie inside a shape of radius 1 around the origin."""
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
    """Applies SplitMix64, which turns uint64 values into pseudo-random ones."""
    values = values * GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def noise(seeds: np.ndarray, count: int) -> np.ndarray:
    """Returns float32 [n, count] of triangular noise with mean 0 and deviation 1, hashed from seeds (Murmur3)."""
    counter = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
    mixed = (seeds ^ (seeds >> np.uint64(32))).astype(np.uint32)[:, None] ^ counter
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    total = (mixed & np.uint32(0xFFFF)) + (mixed >> np.uint32(16))
    return (total.astype(np.float32) - np.float32(65535)) * np.float32(6**0.5 / 65536)


DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Known:
    """A data set of torchvision: the name of its class, its images, and the files in its folder."""

    name: str
    size: int
    channels: int
    files: str
    flip: bool = True
    by_train: bool = True  # whether parts are train=True/False rather than split="train"/"test"


SETS = {
    "cifar10": Known("CIFAR10", 32, 3, "cifar-10-batches-py/, or cifar-10-python.tar.gz"),
    "cifar100": Known("CIFAR100", 32, 3, "cifar-100-python/, or cifar-100-python.tar.gz"),
    "svhn": Known("SVHN", 32, 3, "train_32x32.mat and test_32x32.mat", flip=False, by_train=False),
    "stl10": Known("STL10", 96, 3, "stl10_binary/, or stl10_binary.tar.gz", by_train=False),
    "mnist": Known("MNIST", 28, 1, "MNIST/raw/ with the four *-ubyte files", flip=False),
    "fashion_mnist": Known("FashionMNIST", 28, 1, "FashionMNIST/raw/ with the four *-ubyte files"),
}


class TorchvisionSet(ImageSource):
    """One of torchvision's data sets. Its pixels stay in memory while images are read."""

    def __init__(self, settings: TorchvisionSource) -> None:
        self.settings, self.known = settings, SETS[settings.name]
        self.flip, self.shape = self.known.flip, (self.known.size, self.known.channels)

    def __reduce__(self) -> tuple[type["TorchvisionSet"], tuple[TorchvisionSource]]:
        return type(self), (self.settings,)

    @cached_property
    def _parts(self) -> dict[str, Any]:
        names = ("train", "test", "unlabeled") if self.settings.name == "stl10" else ("train", "test")
        return {name: self._open(name) for name in names}

    @cached_property
    def _pixels(self) -> dict[str, np.ndarray]:
        return {name: upright(np.asarray(part.data), self.known.channels) for name, part in self._parts.items()}

    def _open(self, part: str) -> Any:
        try:
            return self._load(part, download=False)
        except RuntimeError as missing:  # torchvision raises it for missing or incomplete files
            if self.settings.download:
                with contextlib.suppress(OSError, RuntimeError):  # no network, or a broken download
                    return self._load(part, download=True)
            raise DataError(
                f"{self.known.name} is not in {self.settings.path.absolute()}"
                + (" and cannot be downloaded here" if self.settings.download else "")
                + f". Put {self.known.files} into that folder, or set data.source.path to another one"
            ) from missing

    def _load(self, part: str, download: bool) -> Any:
        from selftrain.models.torchvision_import import torchvision  # seconds of imports that only this source needs

        build = getattr(torchvision.datasets, self.known.name)
        choice: dict[str, Any] = {"train": part == "train"} if self.known.by_train else {"split": part}
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # only results go to stdout
            warnings.filterwarnings("ignore", message="dtype")  # CIFAR's files hold arrays that an old numpy wrote
            return build(str(self.settings.path), download=download, **choice)

    def check(self) -> None:
        if not self.settings.download:
            existing(self.settings.path, f"the folder of {self.known.name}")

    def fingerprint(self, files: FileDigests) -> str:
        return self.known.name  # a published set never changes, and torchvision checks its files

    def listing(self) -> Listing:
        train = self._parts["train"]
        classes = tuple(str(name) for name in getattr(train, "classes", DIGITS))
        ids: list[str] = []
        labels: list[str | None] = []
        splits: list[str | None] = []
        for name, part in self._parts.items():
            numbers = np.asarray(part.targets if hasattr(part, "targets") else part.labels).astype(int)
            ids += [f"{name}/{number:06d}" for number in range(len(numbers))]
            labels += [classes[number] if number >= 0 else None for number in numbers]
            splits += [None if name == "train" else name] * len(numbers)
        return Listing.of(ids, labels, splits, ids, classes=classes)

    def read(self, uri: str) -> np.ndarray:
        part, _, number = uri.partition("/")
        return self._pixels[part][int(number)]


def upright(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Returns uint8 [n, H, W] or [n, H, W, 3] from either order of axes."""
    first = channels == 3 and pixels.shape[1] == 3
    return pixels.transpose(0, 2, 3, 1) if first else pixels
