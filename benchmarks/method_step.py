"""Measures the cost of a method beside the networks: one step ÷ a bare forward-backward of the images that it
processes.

    python benchmarks/method_step.py [--quick] [--methods fixmatch uda] [--threads 2] [--device auto] [--workers 0]

A step is everything that training does: the batch from bytes (all its views), the loss, backward, the optimizer, the
averages. The bare side runs as many random images through the same network: those that a step runs with a gradient
in one forward and backward, those without one in one forward, those whose own gradient is asked for (VAT) in one of
each. How many these are is counted while the method steps, and stands in the table. Network (WRN-28-2), batch and
ratio are those of the method's recipe in `configs/cifar10/`, its paper's; 32×32. The sides take turns; medians. On
CUDA, waits of the host during a step are counted.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import publish
from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.stream import PseudoPool
from selftrain.ssl_tasks.execution.devices import autocast, prepare_backends, resolve_device
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.methods.table import METHODS
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings, SyntheticSource
from selftrain.ssl_tasks.settings.overrides import merged
from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.settings.run_config import LearnerSettings
from selftrain.ssl_tasks.training.loop import refresh, take_step
from selftrain.ssl_tasks.training.run import TrainingRun, build_run

SEED = 0
TARGET = 1.15
CLASSES = 10
AT_WORK: dict[str, dict[str, Any]] = {  # past the warm-up, in which methods are cheaper
    "label_propagation": {"warmup": 0.0},
    "confirmation_bias": {"warmup": 0.0},
    "meta_pseudo_labels": {"student_wait": 0.0, "finetune": 0.0},
    "dividemix": {"warmup": 0.0},
}
Counts = Counter[str]


@contextlib.contextmanager
def counted_images() -> Iterator[Counts]:
    """Counts the images that pass any classifier's body: with a gradient, without one, and with one for the image
    itself."""
    counts: Counts = Counter()
    original = Classifier.features

    def features(network: Classifier, images: Tensor) -> Tensor:
        kind = "trained" if torch.is_grad_enabled() else "forward"
        counts["own gradient" if images.requires_grad else kind] += len(images)
        return original(network, images)

    Classifier.features = features  # type: ignore[method-assign, assignment]
    try:
        yield counts
    finally:
        Classifier.features = original  # type: ignore[method-assign]


def bare_pass(run: TrainingRun, counts: Counts) -> Callable[[], None]:
    """A forward-backward of that many random images and nothing else."""
    network, device = run.state.student, run.device

    def images(kind: str) -> Tensor:
        return torch.randn(counts[kind], 3, 32, 32, device=device).to(memory_format=torch.channels_last)

    trained, forward, changed = images("trained"), images("forward"), images("own gradient").requires_grad_()
    labels = {len(one): torch.randint(CLASSES, (len(one),), device=device) for one in (trained, changed)}

    def once() -> None:
        with autocast(device, run.dtype):
            if len(forward):
                with torch.no_grad():
                    network(forward)
            if len(changed):
                torch.autograd.grad(F.cross_entropy(network(changed), labels[len(changed)]), changed)
            loss = F.cross_entropy(network(trained), labels[len(trained)])
        network.zero_grad(set_to_none=True)
        loss.backward()

    return once


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time, with all that the device was asked to do."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def waits(run: TrainingRun, batch: Batch) -> int | str:
    """Counts how often the host waits for the device during a step."""
    if run.device.type != "cuda":
        return "not on CUDA"
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        take_step(run, batch)
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in found)


def measure(name: str, run: TrainingRun, repeats: int, workers: int) -> dict[str, Any]:
    """The row of one method."""
    batches = run.batches(workers)
    refresh(run)
    with counted_images() as counts:
        take_step(run, next(batches))
    bare = bare_pass(run, counts)
    bare()
    steps, bares = [], []
    for _ in range(repeats):
        steps.append(seconds_of(lambda: take_step(run, next(batches)), run.device))
        bares.append(seconds_of(bare, run.device))
    row: dict[str, Any] = {"method": name, **{kind: counts[kind] for kind in ("trained", "forward", "own gradient")}}
    step, plain = statistics.median(steps), statistics.median(bares)
    row |= {"step s": step, "bare s": plain, "ratio": step / plain, "waits": waits(run, next(batches))}
    return row


def synthetic_images(workspace: Path, count: int) -> Dataset:
    """Images of 32×32, 40 of them labelled in each class."""
    split = SplitSettings(labels_per_class=40, validation=100)
    section = DataSettings(source=SyntheticSource(name="synthetic", size=count, test_size=100), split=split)
    request = Request("dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", section)
    return Dataset.open(execute(request, workspace).artifact, workspace / "cache")


def stored_pseudo_labels(dataset: Dataset) -> PseudoPool:
    """Soft pseudo-labels for every unlabelled image."""
    count = len(dataset.pool("unlabeled"))
    generator = np.random.default_rng(SEED)
    probs = generator.dirichlet(np.ones(CLASSES), count).astype(np.float32)
    return PseudoPool(np.arange(count), probs.argmax(1), np.ones(count, np.int64), probs)


def prepare(name: str, dataset: Dataset, changes: dict[str, Any], device: torch.device) -> TrainingRun:
    """A run in its paper's setting but for the changes, at step 0."""
    recipe = load_recipe(f"cifar10/{name}").config
    learners = (recipe.teacher, *(one.student for one in recipe.rounds))
    paper = next(learner for learner in learners if learner.method.name == name).model_dump(exclude_unset=True)
    learner = LearnerSettings.model_validate(
        merged(paper, {"method": {"name": name, **AT_WORK.get(name, {})}} | changes)
    )
    stored = stored_pseudo_labels(dataset) if name in ("noisy_student", "distillation") else None
    return build_run(learner, dataset, SEED, device, stored)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and batch: whether it runs, no figures")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=sorted(METHODS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    prepare_backends("auto", arguments.threads)
    repeats = 2 if arguments.quick else arguments.repeats
    changes: dict[str, Any] = {"train": {"steps": repeats + 3, "warmup_steps": 0}}
    if arguments.quick:
        changes = {"model": {"name": "small_cnn"}, "train": changes["train"] | {"batch_size": 8}}
    rows = []
    with tempfile.TemporaryDirectory() as workspace:
        dataset = synthetic_images(Path(workspace), 2_000)
        for name in arguments.methods:
            run = prepare(name, dataset, changes, device)
            rows.append(measure(name, run, repeats, arguments.workers))
            print(f"{name}: {rows[-1]['ratio']:.3f}", file=sys.stderr, flush=True)
    worst = max(rows, key=lambda row: row["ratio"])
    summary = {
        "model": "small_cnn" if arguments.quick else "wrn-28-2",
        "threads": arguments.threads,
        "workers": arguments.workers,
        "device": device.type,
        "seed": SEED,
        "worst": worst["method"],
        "worst_ratio": worst["ratio"],
        "target": TARGET,
        "meets": worst["ratio"] <= TARGET,
    }
    a_part = set(arguments.methods) != set(METHODS)  # it does not take the place of all on file
    publish("method_step", rows, summary, arguments.quick or a_part)


if __name__ == "__main__":
    main()
