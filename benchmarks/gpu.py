"""FixMatch on a GPU as in its paper: WRN-28-2, 64 labelled images, μ = 7, bf16, CIFAR-10 with 250 labels.

    python benchmarks/gpu.py --data FOLDER [--minutes 8] [--steps 1048576] [--workers 8] [--workspace FOLDER] [--quick]

First what a step costs: images/s of the engine and of a bare loop over ready tensors, in turns (`train_step.py` says
what belongs to either side); the first call in a workspace measures it. Then accuracy: the run resumes where the
previous call stopped, until so many minutes of this call are over, and the test set is read once, with the averaged
weights. The reference takes 2²⁰ steps: the hours for these follow from the rate. FOLDER has cifar10-train.parquet and
cifar10-test.parquet with columns `image` (bytes of an encoded image) and `label_name`. Needs torch, torchvision, numpy,
pandas, pyarrow, albumentations and pydantic alone.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.report import publish
from benchmarks.train_step import SEED, measure
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import Interrupted
from selftrain.ssl_tasks.execution.devices import prepare_backends, resolve_device
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings, TableSource
from selftrain.ssl_tasks.settings.run_config import LearnerSettings
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.training.checkpoints import Checkpoints
from selftrain.ssl_tasks.training.loop import train
from selftrain.ssl_tasks.training.run import TrainingRun, build_run, validate
from selftrain.ssl_tasks.training.state import Snapshot

REFERENCE_STEPS = 2**20
SPEED = {"steps": 200, "rounds": 5}  # steps a turn, and turns
TARGET = 0.95


class TorchCheckpoints(Checkpoints):
    """One file in torch's own format: a bare GPU machine has no safetensors."""

    def save(self, snapshot: Snapshot) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({"tensors": snapshot.tensors, "values": snapshot.values}, self.folder / "unfinished.tmp")
        os.replace(self.folder / "unfinished.tmp", self.folder / "newest.pt")
        self.saved = time.monotonic()

    def newest(self) -> Snapshot | None:
        if not (self.folder / "newest.pt").exists():
            return None
        return Snapshot(**torch.load(self.folder / "newest.pt", weights_only=True))

    def describe(self) -> str:
        return f"the last good checkpoint is {self.folder / 'newest.pt'}"


def cifar10(folder: Path, workspace: Path) -> Dataset:
    """25 labels of each class, 5,000 images for validation, the official test set; decoded once."""
    places = {"path": folder / "cifar10-train.parquet", "test_path": folder / "cifar10-test.parquet"}
    source = TableSource(name="table", label="label_name", **places)
    section = DataSettings(source=source, split=SplitSettings(labels_per_class=25, validation=5000, seed=SEED))
    request = Request("dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", section)
    return Dataset.open(execute(request, workspace).artifact, workspace / "cache")


def fixmatch(steps: int, evaluate_every: int, quick: bool, log_every: int = 100) -> LearnerSettings:
    """The paper's setting."""
    model, batch = ("small_cnn", 8) if quick else ("wrn-28-2", 64)
    settings = {"steps": steps, "batch_size": batch, "unlabeled_ratio": 7, "compile": "on" if not quick else "off"}
    settings |= {"evaluate_every": evaluate_every, "log_every": log_every}
    return LearnerSettings.model_validate({"model": {"name": model}, "method": {"name": "fixmatch"}, "train": settings})


def speed(dataset: Dataset, device: torch.device, workspace: Path, workers: int, quick: bool) -> dict[str, Any]:
    """Images a second of the engine and of the bare loop; what an earlier call has measured, where one has."""
    measured = workspace / "speed.json"
    if measured.exists() and not quick:
        row: dict[str, Any] = json.loads(measured.read_text())
        return row
    steps, rounds = (2, 3) if quick else (SPEED["steps"], SPEED["rounds"])
    learner = fixmatch(steps * (rounds + 2), 10**9, quick, log_every=steps)
    row = measure(learner, dataset, device, steps, workers, TorchCheckpoints(workspace / "speed", float("inf")))
    write_atomically(measured, json.dumps(row))
    return row


def train_for(run: TrainingRun, checkpoints: Checkpoints, seconds: float, workers: int) -> float | None:
    """Trains until the time or the steps are over, and leaves a checkpoint; seconds a step, if there were enough."""
    clock = threading.Timer(max(0.0, seconds), os.kill, (os.getpid(), signal.SIGTERM))
    clock.daemon = True
    reports: list[tuple[float, int]] = []
    clock.start()
    try:
        train(run, checkpoints, lambda step, values: reports.append((time.perf_counter(), step)), workers)
    except Interrupted as asked:
        print(asked, file=sys.stderr)
    finally:
        clock.cancel()
    if len(reports) < 2:
        return None
    (first, begun), (last, ended) = reports[0], reports[-1]  # compiling is over at the first
    return (last - first) / (ended - begun)


def accuracy(run: TrainingRun, dataset: Dataset) -> float:
    """On the test images, in percent."""
    return 100 * validate(replace(run, validation=dataset.pool("test")))["validation_accuracy"]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and few steps: no figures")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, default=Path(".selftrain-gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole call, but for the test images")
    parser.add_argument("--steps", type=int, default=REFERENCE_STEPS, help="of the whole run, the cosine's length")
    parser.add_argument("--workers", type=int, default=8, help="processes that prepare batches")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    wanted, began = parser.parse_args(), time.monotonic()
    device, workspace = resolve_device(wanted.device), wanted.workspace.absolute()
    prepare_backends("auto", wanted.threads)
    dataset = cifar10(wanted.data.absolute(), workspace)

    row = speed(dataset, device, workspace, wanted.workers, wanted.quick)

    total = 6 if wanted.quick else wanted.steps
    run = build_run(
        fixmatch(total, 2 if wanted.quick else 1024, wanted.quick, 2 if wanted.quick else 100), dataset, SEED, device
    )
    checkpoints = TorchCheckpoints(workspace / f"fixmatch-{total}", 60.0)
    seconds = train_for(run, checkpoints, 60 * wanted.minutes - (time.monotonic() - began), wanted.workers)
    summary: dict[str, Any] = {
        "steps": run.state.step,
        "of": total,
        "test_accuracy": accuracy(run, dataset),
        "seconds_a_step": seconds,
        "reference_hours": None if seconds is None else seconds * REFERENCE_STEPS / 3600,
        "workers": wanted.workers,
        "seed": SEED,
        "target": TARGET,
        "meets": row["ratio"] >= TARGET,
    }
    publish("gpu", [row], summary, wanted.quick)


if __name__ == "__main__":
    main()
