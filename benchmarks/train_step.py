"""Measures the overhead of the engine: images a second of training ÷ those of a bare loop over a ready tensor.

    python benchmarks/train_step.py [--quick] [--threads 2] [--workers 0] [--device auto] [--rounds 12]

The engine's side is everything that a run does but evaluation: batches from bytes with all their views, the method, the
optimizer, the average, logs, the history, a checkpoint every few seconds (its write is waited for, and counted). The
bare side is a forward, a loss, a backward and the same optimizer over images that lie ready as normalised floats: the
same network (compiled, where the engine's is), precision and batch, as many images through the network. Both sides take
turns in one process, some steps each, on the same cores, which preparing the batches shares; medians of the turns, but
for the first, which warms up, and the last, which ends with an evaluation. Worker processes keep preparing batches in
the bare loop's turn, two for each of them: turns should be longer than that. Supervised with batches of 64, and
FixMatch with 16 labelled images and μ = 7, on WRN-28-2 at 32×32.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.report import publish
from selftrain.models import build_model
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.execution.devices import autocast, prepare_backends, resolve_device
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.data import DataSettings, FolderSource, SplitSettings
from selftrain.ssl_tasks.settings.run_config import LearnerSettings
from selftrain.ssl_tasks.training.checkpoints import Checkpoints
from selftrain.ssl_tasks.training.loop import train
from selftrain.ssl_tasks.training.run import TrainingRun, build_run
from selftrain.ssl_tasks.training.state import build_optimizer

TARGET = 0.95
SEED = 0
CASES: dict[str, dict[str, Any]] = {
    "supervised": {"batch_size": 64},
    "fixmatch": {"batch_size": 16, "unlabeled_ratio": 7},
}


def images(workspace: Path, count: int) -> Dataset:
    """Image files of 32×32, read once and kept decoded."""
    generator = np.random.default_rng(SEED)
    for number in range(count):
        folder = workspace / "images" / f"class-{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    source = FolderSource(name="folder", path=workspace / "images")
    section = DataSettings(source=source, split=SplitSettings(labels_per_class=40, validation=100, test=100))
    request = Request("dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", section)
    return Dataset.open(execute(request, workspace).artifact, workspace / "cache")


def bare_loop(run: TrainingRun, views: int, labeled: int) -> Callable[[], None]:
    """One step over ready tensors: `views` images forward and backward, of which `labeled` have a label."""
    learner, device = run.learner, run.device
    network = build_model(learner.model, 10, 3, 32).to(device).to(memory_format=torch.channels_last)
    if learner.train.compile == "on":
        network.compile()
    optimizer = build_optimizer(learner.train, network.parameters())
    ready = torch.randn(views, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (views,), device=device)
    weak = (views - labeled) // 2

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, run.dtype):
            logits = network(ready)
            loss = F.cross_entropy(logits[:labeled], labels[:labeled])
            if weak:
                confidence, guess = logits[labeled : labeled + weak].detach().float().softmax(1).max(1)
                unlabeled = F.cross_entropy(logits[labeled + weak :], guess, reduction="none")
                loss = loss + (unlabeled * (confidence > 0.95)).mean()
        loss.backward()
        optimizer.step()

    return step


def measure(
    learner: LearnerSettings, dataset: Dataset, device: torch.device, steps: int, workers: int, checkpoints: Checkpoints
) -> dict[str, Any]:
    """The row of one method: both sides' images (through the network) a second, and their ratio; `steps` a turn."""
    name = learner.method.name
    run = build_run(learner, dataset, SEED, device)
    views = run.problem.batch_size + len(run.stream.views.unlabeled) * run.problem.unlabeled_batch
    bare = bare_loop(run, views, run.problem.batch_size)
    engine_seconds: list[float] = []
    bare_seconds: list[float] = []
    started = now(device)

    def take_turns(step: int, values: Mapping[str, float]) -> None:
        """Called at each row of the history: the engine's turn ends, the bare loop's begins."""
        nonlocal started
        checkpoints.wait()
        middle = now(device)
        for _ in range(steps):
            bare()
        engine_seconds.append(middle - started)
        started = now(device)
        bare_seconds.append(started - middle)

    train(run, checkpoints, take_turns, workers)
    engine_turns, bare_turns = engine_seconds[1:-1], bare_seconds[1:-1]
    rates = [steps * views / statistics.median(turns) for turns in (engine_turns, bare_turns)]
    ratios = [bare_turn / engine for engine, bare_turn in zip(engine_turns, bare_turns, strict=True)]
    return {
        "method": name,
        "batch": f"{run.problem.batch_size} + {views - run.problem.batch_size}",
        "precision": str(run.dtype).removeprefix("torch."),
        "compile": learner.train.compile,
        "engine images/s": rates[0],
        "bare images/s": rates[1],
        "ratio": statistics.median(ratios),
        "ratio min": min(ratios),
        "ratio max": max(ratios),
    }


def turns(name: str, model: str, steps: int, rounds: int) -> LearnerSettings:
    """A case as a learner whose rows of the history, where the sides change, come after `steps` each."""
    settings = {"steps": steps * (rounds + 2), "evaluate_every": 10**9, "log_every": steps, **CASES[name]}
    return LearnerSettings.model_validate({"model": {"name": model}, "method": {"name": name}, "train": settings})


def now(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network, two steps a turn: no figures")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="of each side in a turn")
    parser.add_argument("--checkpoint-every", type=float, default=10.0, help="seconds; a run's default is 60")
    parser.add_argument("--methods", nargs="+", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    model, steps, rounds = ("small_cnn", 2, 3) if arguments.quick else ("wrn-28-2", arguments.steps, arguments.rounds)
    device = resolve_device(arguments.device)
    prepare_backends("auto", arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        dataset = images(Path(folder), 2_000)
        rows = []
        for name in arguments.methods:
            checkpoints = Checkpoints(Path(folder) / name, arguments.checkpoint_every)
            learner = turns(name, model, steps, rounds)
            rows.append(measure(learner, dataset, device, steps, arguments.workers, checkpoints))
    worst = min(row["ratio"] for row in rows)
    summary = {
        "model": model,
        "threads": arguments.threads,
        "workers": arguments.workers,
        "seed": SEED,
        **{f"{row['method']} ratio": row["ratio"] for row in rows},
        "target": TARGET,
        "meets": worst >= TARGET,
    }
    publish("train_step", rows, summary, arguments.quick)


if __name__ == "__main__":
    main()
