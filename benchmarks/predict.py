"""Predicting: images a second ÷ those of the bare network on tensors that are ready, and memory over a long run.

python benchmarks/predict.py [--quick] [--model wrn-28-2] [--images 20000] [--scale 1000000]

The stage reads 32×32 images from the decoded cache, normalises, predicts, and writes its shards; `bare` runs the same
network in the same precision over tensors in memory. The sides alternate. With `--scale`, instead: predict → select on
so many synthetic images with a small network, and the memory of the process after every shard.
"""

import argparse
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import publish
from selftrain.models import ModelSettings, build_model
from selftrain.ssl_tasks.data.sources import fingerprint
from selftrain.ssl_tasks.execution.stage import Request, StageContext, execute, load_body
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings, SyntheticSource, TableSource
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings, SelectSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.model import Card, Trained, load_trained, save_trained

SIZE, CLASSES, LABELED = 32, 10, 400
RATIO, GROWTH_MB = 0.95, 50.0


class Watched(StageContext):
    """A stage's context that looks at the process's memory whenever a shard is done."""

    def progress(self, done: int, total: int, what: str = "") -> None:
        MEMORY.append(psutil.Process().memory_info().rss / 2**20)


MEMORY: list[float] = []  # MB


def pictures(folder: Path, images: int) -> DataSettings:
    """A table of PNG files: noise, the worst that a decoder can meet; the first ones have labels."""
    random, rows = np.random.default_rng(0), []
    for _ in range(images + LABELED):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(buffer, "png", compress_level=1)
        rows.append(buffer.getvalue())
    labels = [str(number % CLASSES) if number < LABELED else None for number in range(len(rows))]
    pq.write_table(pa.table({"image": rows, "label": labels}), folder / "pictures.parquet")
    source = TableSource(name="table", path=folder / "pictures.parquet")
    return DataSettings(source=source, split=SplitSettings(validation=200, test=100, unlabeled_includes_labeled=False))


def build(settings: DataSettings, workspace: Path) -> Artifact:
    """The data set, with its images decoded."""
    depends = {"source": fingerprint(settings, workspace / "cache")}
    request = Request(
        "dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", settings, depends=depends
    )
    return execute(request, workspace).artifact


def untrained(folder: Path, name: str, classes: Sequence[str]) -> Artifact:
    """A network with its first weights: as fast as a trained one."""
    folder.mkdir()
    settings = ModelSettings(name=name)
    network = build_model(settings, len(classes), 3, SIZE)
    card = Card(
        model=settings, classes=tuple(classes), in_channels=3, image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    save_trained(folder, network, card)
    return Artifact(folder, {"stage": "train", "key": "untrained", "digest": "untrained"})


def run(body: str, section: Section, inputs: dict[str, Artifact], workspace: Path, name: str) -> dict[str, Any]:
    """A stage's body on a fresh output folder; its summary."""
    output = workspace / name
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    context = Watched(section, inputs, output, workspace / "scratch", workspace / "cache", RuntimeSettings())
    return dict(load_body(body)(context).summary)


def predict_seconds(inputs: dict[str, Artifact], workspace: Path, batch_size: int) -> dict[str, Any]:
    """The whole stage, without shards that were there before; seconds in all and by part."""
    shutil.rmtree(workspace / "cache" / "shards", ignore_errors=True)
    section = PredictSettings(shard_size=8192, batch_size=batch_size)
    started = time.monotonic()
    summary = run("selftrain.ssl_tasks.pseudo_labels.predict:predict", section, inputs, workspace, "predictions")
    return {**summary["seconds"], "all": time.monotonic() - started, "images": summary["images"] + 200}


@torch.inference_mode()
def bare_seconds(teacher: Trained, images: int, batch_size: int) -> float:
    """The network alone, on normalised batches that lie ready on its device."""
    pixels = torch.randint(0, 256, (batch_size, SIZE, SIZE, 3), dtype=torch.uint8)
    ready, tail = teacher.normalise(pixels), images % batch_size
    batches = [ready] * (images // batch_size) + ([ready[:tail]] if tail else [])
    started = time.monotonic()
    for batch in batches:
        with torch.autocast(teacher.device.type, teacher.dtype, enabled=teacher.dtype != torch.float32):
            teacher.network(batch).float().cpu()
    return time.monotonic() - started


def speed(images: int, model: str, batch_size: int, repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Both sides in turn; the ratio is the median over the turns."""
    with tempfile.TemporaryDirectory(prefix="selftrain-predict-") as place:
        workspace = Path(place)
        dataset = build(pictures(workspace, images), workspace)
        teacher = untrained(workspace / "model", model, [str(number) for number in range(CLASSES)])
        inputs, loaded = {"dataset": dataset, "model": teacher}, load_trained(teacher.path)
        predict_seconds(inputs, workspace, batch_size)
        turns = [
            (predict_seconds(inputs, workspace, batch_size), bare_seconds(loaded, images + 200, batch_size))
            for _ in range(repeats)
        ]
    rows = [
        {
            "stage_per_second": stage["images"] / stage["all"],
            "bare_per_second": stage["images"] / bare,
            "ratio": bare / stage["all"],
            **{f"share_{part}": stage[part] / stage["all"] for part in ("decoding", "network", "writing")},
        }
        for stage, bare in turns
    ]
    ratio = statistics.median(row["ratio"] for row in rows)
    about = {"model": model, "images": images, "batch_size": batch_size, "precision": str(loaded.dtype)}
    return rows, {**about, "ratio": ratio, "target": RATIO, "meets": ratio >= RATIO}


def scale(images: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Predict → select; memory after the first tenth of the shards and at its highest."""
    source = SyntheticSource(name="synthetic", size=images, image_size=8, classes=CLASSES)
    split = SplitSettings(labels_per_class=10, validation=500, unlabeled_includes_labeled=False)
    with tempfile.TemporaryDirectory(prefix="selftrain-predict-") as place:
        workspace, started = Path(place), time.monotonic()
        dataset = build(DataSettings(source=source, split=split), workspace)
        built = time.monotonic()
        names = [f"class-{number:03d}" for number in range(CLASSES)]
        inputs = {"dataset": dataset, "model": untrained(workspace / "model", "mlp", names)}
        section = PredictSettings(shard_size=max(64, images // 64), batch_size=1024)
        run("selftrain.ssl_tasks.pseudo_labels.predict:predict", section, inputs, workspace, "predictions")
        predicted, first, highest = time.monotonic(), MEMORY[len(MEMORY) // 10], max(MEMORY)
        chosen = {
            "dataset": dataset,
            "predictions": Artifact(workspace / "predictions", {"digest": "predictions"}),
        }
        summary = run(
            "selftrain.ssl_tasks.pseudo_labels.select:select",
            SelectSettings(threshold=None),
            chosen,
            workspace,
            "selection",
        )
        ended = time.monotonic()
    row = {
        "images": images,
        "dataset_seconds": built - started,
        "predict_seconds": predicted - built,
        "select_seconds": ended - predicted,
        "kept": summary["kept"],
        "memory_after_a_tenth_mb": first,
        "memory_highest_mb": highest,
        "memory_after_select_mb": psutil.Process().memory_info().rss / 2**20,
    }
    growth = highest - first
    return [row], {"memory_growth_mb": growth, "target": GROWTH_MB, "meets": growth <= GROWTH_MB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 images, one turn")
    parser.add_argument("--model", default="wrn-28-2")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=int, help="images of a run whose memory is watched; no speed is measured")
    wanted = parser.parse_args()
    if wanted.scale:
        rows, summary = scale(wanted.scale)
        publish("predict_scale", rows, summary, wanted.quick)
        return
    images, repeats = (2_000, 1) if wanted.quick else (wanted.images, wanted.repeats)
    rows, summary = speed(images, wanted.model, wanted.batch_size, repeats)
    publish("predict", rows, summary, wanted.quick)


if __name__ == "__main__":
    main()
