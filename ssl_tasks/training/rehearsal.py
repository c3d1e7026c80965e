"""Measures what a stage costs, in the process of the stage: its body on a sample of the images, or a training's steps.

A training takes a few steps at its beginning and, for a method that starts later, a few after that. It evaluates, and
writes a checkpoint and its model. The rest follows by counting.
"""

import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from selftrain.ssl_tasks.data.dataset import write_dataset
from selftrain.ssl_tasks.data.survey import survey
from selftrain.ssl_tasks.execution.devices import resolve_device
from selftrain.ssl_tasks.execution.stage import Rehearsing, StageContext, StageResult, load_body
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.settings.run_config import EvaluateSettings
from selftrain.ssl_tasks.training.checkpoints import Checkpoints, checkpoint_files
from selftrain.ssl_tasks.training.loop import evaluate, refresh, take_step, write_log
from selftrain.ssl_tasks.training.run import TrainingRun
from selftrain.ssl_tasks.training.stage import open_run, write_model

MEASURED = "measured"  # the entry of a result's summary
MOST_IMAGES, FEWEST_IMAGES = 1_280, 128  # of a split in a sample: so many of 32×32 pixels, fewer of larger ones
STEPS, LEAST_STEPS, SECONDS = 50, 3, 4.0  # a phase of a training: so many steps, fewer where they take longer
WARM_UP = 2  # first steps, which also allocate memory and choose kernels


def measure(context: StageContext) -> StageResult:
    """Runs the stage's body, or what stands for it, and adds its time and its memory to the summary."""
    assert isinstance(context, Rehearsing)
    stands_for = {"build_dataset": sample, "train_model": rehearse, "evaluate": evaluate_apart}
    body = stands_for.get(context.body.partition(":")[2]) or load_body(context.body)
    started = time.perf_counter()
    result = body(context)
    seconds = time.perf_counter() - started
    measured = {"body_seconds": seconds, "memory": memory(context.runtime.workers), "gpu_memory": gpu_memory()}
    return StageResult({**result.summary, MEASURED: {**measured, **result.summary.get(MEASURED, {})}}, result.parts)


def memory(workers: int) -> int:
    """Returns the most memory that this process has had, in bytes, and as many loading processes as it has."""
    own, largest = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return 1024 * (own + workers * largest)


def gpu_memory() -> int | None:
    """Returns the most memory that this process has reserved on a GPU, in bytes; None where it has used none."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else None


def most_images(image_size: int) -> int:
    """Returns the number of images of a split in a sample, so that samples have about as many pixels."""
    return min(MOST_IMAGES, max(FEWEST_IMAGES, MOST_IMAGES * 32**2 // image_size**2))


def sample(context: Rehearsing) -> StageResult:
    """Writes a data set of some images of the source."""
    settings, chosen = context.section, context.most
    assert isinstance(settings, DataSettings)
    most = most_images if chosen is None else lambda _: chosen
    found = survey(settings, context.cache, context.runtime, context.progress, most)
    result = write_dataset(context, settings, found)
    measured = {"source_counts": dict(found.source_counts), "most": most(found.decoder.image_size)}
    return StageResult({**result.summary, MEASURED: measured}, result.parts)


def evaluate_apart(context: Rehearsing) -> StageResult:
    """Evaluates; attacks and corruptions, which look at a fixed number of images, are left out of the time an image."""
    settings, evaluate_model = context.section, load_body(context.body)
    assert isinstance(settings, EvaluateSettings)
    if not settings.attacks and not settings.corruptions:
        return evaluate_model(context)
    plain = settings.model_copy(update={"attacks": (), "corruptions": False})
    started = time.perf_counter()
    counts = evaluate_model(replace(context, section=plain)).summary
    seconds = time.perf_counter() - started
    per_image = seconds / max(1, counts["validation_count"] + counts["test_count"])
    result = evaluate_model(context)
    return StageResult({**result.summary, MEASURED: {"per_image": per_image, "spent_seconds": seconds}}, result.parts)


def rehearse(context: Rehearsing) -> StageResult:
    """Takes some steps of a training, and writes the model that they make."""
    device = resolve_device(context.runtime.device)
    run, dataset = open_run(context, device)
    checkpoints = Checkpoints(context.scratch / "checkpoints", context.runtime.checkpoint_every)
    rehearsed = Rehearsed(run, context, checkpoints)
    loop_seconds = rehearsed.loop_seconds()
    result = write_model(context, run, dataset, "steps", [])
    before = memory(context.runtime.workers)
    pause, checkpoint_bytes = rehearsed.checkpoint()
    saved = int(loop_seconds // context.runtime.checkpoint_every)
    measured = {
        "spent_seconds": rehearsed.spent,
        "loop_seconds": loop_seconds + saved * pause,
        "step_seconds": rehearsed.step_seconds,
        "checkpoint_bytes": min(2, saved) * checkpoint_bytes,
        **({} if saved else {"memory": before}),
    }
    return StageResult({**result.summary, MEASURED: measured}, result.parts)


class Rehearsed:
    """The parts of a training, each timed by itself; `spent` is what timing them took."""

    def __init__(self, run: TrainingRun, context: Rehearsing, checkpoints: Checkpoints) -> None:
        self.run, self.context, self.checkpoints = run, context, checkpoints
        self.spent, self.step_seconds = 0.0, 0.0

    def timed(self, part: Callable[[], Any]) -> float:
        """Returns the seconds that a part takes, on a GPU too."""
        started = time.perf_counter()
        part()
        if self.run.device.type == "cuda":
            torch.cuda.synchronize(self.run.device)
        seconds = time.perf_counter() - started
        self.spent += seconds
        return seconds

    def loop_seconds(self) -> float:
        """Returns the estimated time of the whole loop, without checkpoints."""
        steps, begins = self.run.problem.steps, min(self.run.problem.steps, self.run.state.method.refresh_from())
        total = sum(self.phase(first, stop) for first, stop in ((0, begins), (begins, steps)) if first < stop)
        write_log(self.run, self.checkpoints)
        return total + self.evaluations()

    def phase(self, first: int, stop: int) -> float:
        """Returns the time of the steps `first` to `stop`, with the method's passes over whole pools."""
        run, looks, steps = self.run, list[float](), list[float]()
        run.state.step = first
        batches = run.batches(self.context.runtime.workers)
        ends = time.perf_counter() + SECONDS
        while run.state.step < stop and len(steps) < STEPS:
            if len(steps) >= LEAST_STEPS and time.perf_counter() > ends:
                break
            every, since = run.state.method.refresh_every(), run.state.step - run.state.method.refresh_from()
            if every is not None and since >= 0 and since % every == 0:
                looks.append(self.timed(lambda: refresh(run)))
            steps.append(self.timed(lambda: take_step(run, next(batches))))
        usual = self.step_seconds = statistics.median(steps[WARM_UP:] or steps)
        extra = max(0.0, sum(steps[:WARM_UP]) - usual * len(steps[:WARM_UP]))
        return extra + usual * (stop - first) + (statistics.median(looks) * self.looks(stop) if looks else 0.0)

    def looks(self, stop: int) -> float:
        """Returns how often the method looks at whole pools until `stop`, times how much larger these are than here."""
        method, problem = self.run.state.method, self.run.problem
        growth = {name: self.growth(name) for name in ("labeled", "unlabeled")}
        method.problem = replace(
            problem,
            num_labeled=round(problem.num_labeled * growth["labeled"]),
            num_unlabeled=round(problem.num_unlabeled * growth["unlabeled"]),
        )
        every = method.refresh_every()
        times = 0 if every is None else math.ceil((stop - method.refresh_from()) / every)
        method.problem = problem
        return times * max(growth.values())

    def growth(self, pool: str) -> float:
        """Returns how many times larger a pool of the whole data set is than the sample's."""
        summary = self.context.inputs["dataset"].summary
        return self.context.source_counts[pool] / summary[pool] if summary[pool] else 1.0

    def evaluations(self) -> float:
        """Returns the time of all evaluations on validation, and of those on test that the settings ask for."""
        run, train = self.run, self.run.learner.train
        run.state.step = train.steps
        first = self.timed(lambda: evaluate(run))
        usual = min(first, self.timed(lambda: evaluate(run)))
        seen = {"validation": run.validation, "test": run.test}
        counts = {name: int(np.sum(pool.labels >= 0)) if pool is not None else 0 for name, pool in seen.items()}
        if not (images := sum(counts.values())):
            return 0.0
        times = math.ceil(train.steps / train.evaluate_every)
        often = {"validation": times, "test": min(times, train.median_of or 0)}
        wanted = sum(often[name] * counts[name] * self.growth(name) for name in counts)
        return first - usual + usual * wanted / images

    def checkpoint(self) -> tuple[float, int]:
        """Returns the seconds for which a checkpoint holds the training up, and its size."""
        seconds = self.timed(lambda: self.checkpoints.save(self.run.state.snapshot()))
        self.timed(self.checkpoints.wait)
        return seconds, checkpoint_files(self.checkpoints.folder)[-1].stat().st_size
