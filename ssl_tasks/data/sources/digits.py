"""scikit-learn's handwritten digits: 1,797 grey images of 8×8 pixels that come with the package."""

from functools import cached_property

import numpy as np

from selftrain.ssl_tasks.data.sources.base import ImageSource, Listing
from selftrain.ssl_tasks.settings.data import DigitsSource
from selftrain.ssl_tasks.store.file_digests import FileDigests


class Digits(ImageSource):
    """Small enough to hold; read again in every process that asks."""

    flip = False
    shape = (8, 1)

    def __init__(self, settings: DigitsSource) -> None:
        self.settings = settings

    def __reduce__(self) -> tuple[type["Digits"], tuple[DigitsSource]]:
        return type(self), (self.settings,)

    @cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # a second of imports that only this source pays

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
