"""The data sets that torchvision knows, from a local folder that is filled where there is a network."""

import contextlib
import io
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from selftrain.ssl_tasks.data.sources.base import ImageSource, Listing
from selftrain.ssl_tasks.data.sources.places import existing
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.data import TorchvisionSource
from selftrain.ssl_tasks.store.file_digests import FileDigests

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Known:
    """What torchvision's class is called, its images, and what its folder must hold."""

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
    """One of torchvision's sets. Its pixels are held while images are read."""

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
        except RuntimeError as missing:  # torchvision's word for files that are not there or not whole
            if self.settings.download:
                with contextlib.suppress(OSError, RuntimeError):  # no network, or a broken download
                    return self._load(part, download=True)
            raise DataError(
                f"{self.known.name} is not in {self.settings.path.absolute()}"
                + (" and cannot be downloaded here" if self.settings.download else "")
                + f". Put {self.known.files} into that folder, or name another one in data.source.path"
            ) from missing

    def _load(self, part: str, download: bool) -> Any:
        from selftrain.models.torchvision_import import torchvision  # seconds of imports that only this source pays

        build = getattr(torchvision.datasets, self.known.name)
        choice: dict[str, Any] = {"train": part == "train"} if self.known.by_train else {"split": part}
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # results alone go to stdout
            warnings.filterwarnings("ignore", message="dtype")  # CIFAR's files hold arrays as an old numpy wrote them
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
    """uint8 [n, H, W] or [n, H, W, 3] from either order of axes."""
    first = channels == 3 and pixels.shape[1] == 3
    return pixels.transpose(0, 2, 3, 1) if first else pixels
