"""A data set of random images in memory, with the methods that a stream needs."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass
class FakePool:
    """Images that are all different; `true` labels are known to audits, `labels` to training."""

    pixels: NDArray[np.uint8]
    labels: Integers
    true: Integers

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, index: Integers) -> NDArray[np.uint8]:
        return self.pixels[index]

    def truth(self) -> Integers:
        return self.true


@dataclass
class FakeDataset:
    """`labeled` labelled images and `unlabeled` others."""

    labeled: int = 10
    unlabeled: int = 50
    image_size: int = 8
    channels: int = 3
    num_classes: int = 4
    flip: bool = True
    classes: tuple[str, ...] = ("a", "b", "c", "d")
    mean: tuple[float, ...] = (0.5, 0.4, 0.3)
    std: tuple[float, ...] = (0.25, 0.2, 0.3)
    pools: dict[str, FakePool] = field(default_factory=dict)

    def pool(self, name: Literal["labeled", "unlabeled"]) -> FakePool:
        if name not in self.pools:
            size = getattr(self, name)
            generator = np.random.default_rng(len(name))
            shape = (size, self.image_size, self.image_size, self.channels)
            true = np.arange(size) ** 2 % self.num_classes
            labels = true if name == "labeled" else np.full(size, -1)
            self.pools[name] = FakePool(generator.integers(0, 256, shape, dtype=np.uint8), labels, true)
        return self.pools[name]
