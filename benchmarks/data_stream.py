"""Images a second of one core for each view, at 32×32 and 224×224, beside torchvision v2 on the same images.

    python benchmarks/data_stream.py [--quick] [--parquet cifar10-test.parquet] [--column image]

Both sides make uint8 images from uint8 images in one process with one thread: weak is flip and reflected crop, strong
adds two operations of RandAugment (torchvision's own set; nearest interpolation on both sides) and a cut square.
torchvision runs image by image, as in its data sets, on tensors and on PIL images; the better of the two counts.
"""

import argparse
import importlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import publish
from selftrain.models.torchvision_import import torchvision
from selftrain.ssl_tasks.data.batch import View
from selftrain.ssl_tasks.data.views.view import Augmenter, Draws
from selftrain.ssl_tasks.settings.data import AugmentSettings

SEED = 0
TARGET = 8_000  # strong 32×32 images a second on one core, and twice torchvision
Bytes = NDArray[np.uint8]
Run = Callable[[int], object]  # one pass over the images, given its number


def synthetic(count: int, size: int) -> Bytes:
    """Smooth random images: noise of 8×8 made larger."""
    generator = np.random.default_rng(SEED)
    small = torch.from_numpy(generator.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8))
    large = torch.nn.functional.interpolate(small.float(), (size, size), mode="bilinear")
    return large.permute(0, 2, 3, 1).round().byte().contiguous().numpy()


def from_parquet(path: Path, column: str, count: int, size: int) -> Bytes:
    """The first images of a table with encoded images, resized."""
    import pyarrow.parquet as pq

    rows = next(pq.ParquetFile(path).iter_batches(count, columns=[column])).column(0).to_pylist()
    files = [row["bytes"] if isinstance(row, dict) else row for row in rows]
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB").resize((size, size))) for file in files])


def ours(view: View, images: Bytes) -> Run:
    """Our view of the whole batch."""
    augmenter = Augmenter(AugmentSettings(), flip=True)
    return lambda number: augmenter.view(view, images, Draws(0, len(images), SEED, (view, number)))


def torchvisions(view: View, images: Bytes, kind: str) -> Run:
    """torchvision's transforms, image by image, from PIL images or from CHW tensors."""
    v2, size = importlib.import_module(f"{torchvision.__name__}.transforms.v2"), images.shape[1]
    weak = [v2.RandomHorizontalFlip(), v2.RandomCrop(size, padding=size // 8, padding_mode="reflect")]
    cut = [*([v2.PILToTensor()] if kind == "PIL" else []), v2.RandomErasing(1.0, (1e-4, 0.25), (1.0, 1.0), 127)]
    transform = v2.Compose(weak if view == "weak" else [*weak, v2.RandAugment(2, 9), *cut])
    if kind == "PIL":
        sources = [Image.fromarray(image) for image in images]
    else:
        sources = list(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    return lambda number: [transform(source) for source in sources]


def rates(runs: dict[str, Run], images: int, repeats: int) -> dict[str, float]:
    """The median images a second of each run; the sides take turns, so that a slow moment hits them all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, repeats):
        for name, run in runs.items():
            started = time.process_time()
            run(number)
            if number >= 0:  # the first pass warms up
                seconds[name].append(time.process_time() - started)
    return {name: images / statistics.median(values) for name, values in seconds.items()}


def measure(size: int, images: Bytes, repeats: int) -> list[dict[str, object]]:
    """A row for each view at one size."""
    rows: list[dict[str, object]] = []
    views: list[View] = ["weak", "strong"]
    for view in views:
        sides = {"ours": ours(view, images)}
        sides |= {f"torchvision {kind}": torchvisions(view, images, kind) for kind in ("tensor", "PIL")}
        found = rates(sides, len(images), repeats)
        ratio = found["ours"] / max(rate for name, rate in found.items() if name != "ours")
        rows.append({"size": size, "view": view, **found, "ratio to the better": ratio})
    return rows


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parquet", type=Path, help="a table of encoded images; default synthetic ones")
    parser.add_argument("--column", default="image")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rows: list[dict[str, object]] = []
    for size, count in ((32, 1024), (224, 64)):
        count = count // 8 if arguments.quick else count
        images = synthetic(count, size)
        if arguments.parquet:
            images = from_parquet(arguments.parquet, arguments.column, count, size)
        rows += measure(size, images, 3 if arguments.quick else 9)
    strong = next(row for row in rows if row["size"] == 32 and row["view"] == "strong")
    rate, ratio = float(strong["ours"]), float(strong["ratio to the better"])  # type: ignore[arg-type]
    summary = {
        "strong_32_images_per_second": rate,
        "strong_32_ratio_to_torchvision": ratio,
        "target": {"images_per_second": TARGET, "ratio": 2},
        "meets": rate >= TARGET and ratio >= 2,
        "seed": SEED,
        "images": arguments.parquet.name if arguments.parquet else "synthetic",
    }
    publish("data_stream", rows, summary, arguments.quick)


if __name__ == "__main__":
    main()
