"""Small folders of images, painted on the spot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image


class Paint(Protocol):
    """Writes one image that its number alone decides, and returns its path."""

    def __call__(
        self, path: Path, number: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB", **save: Any
    ) -> Path: ...


@pytest.fixture
def paint() -> Paint:
    def write(path: Path, number: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB", **save: Any) -> Path:
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path, **save)
        return path

    return write


@pytest.fixture
def pets(tmp_path: Path, paint: Paint) -> Path:
    """Two classes of twelve images, six unlabelled ones, and two test images of each class."""
    root = tmp_path / "pets"
    for number in range(12):
        paint(root / "cat" / f"{number:02d}.png", number)
        paint(root / "dog" / f"{number:02d}.png", 100 + number)
    for number in range(6):
        paint(root / "unlabeled" / f"{number:02d}.png", 200 + number)
    for number in range(2):
        paint(root / "test" / "cat" / f"{number:02d}.png", 300 + number)
        paint(root / "test" / "dog" / f"{number:02d}.png", 400 + number)
    return root


@pytest.fixture
def build(run_stage: Callable[..., Any]) -> Callable[..., Any]:
    """`build(settings)` → the dataset artifact, keyed by the source's contents as a run would."""
    from selftrain.ssl_tasks.data.sources import fingerprint

    def run(settings: Any, cache: Path) -> Any:
        return run_stage(
            "selftrain.ssl_tasks.data.dataset:build_dataset", settings, depends={"source": fingerprint(settings, cache)}
        )

    return run
