"""Estimates the time, memory and disk of the stages that a plan would compute, by a rehearsal of the recipe.

A rehearsal runs the stages of the recipe with their own code, each in a process of its own, on a sample of the images
and with a few steps of each training. It works in a folder of its own in the cache, which is deleted afterwards. Stages
that cost the same, such as the members of an ensemble, are measured once. Where a stage reads all images, the line
through the costs of two samples leads to those of the whole data set.
"""

import logging
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selftrain.flows.rounds.planning import Estimate, PlannedStage
from selftrain.flows.rounds.self_training import Pending, self_training
from selftrain.flows.rounds.stages import weights_request
from selftrain.models.settings import weights_file
from selftrain.ssl_tasks.execution.process import await_fork_server, run_isolated
from selftrain.ssl_tasks.execution.stage import Rehearsing, Request, begin_attempt, manifest_of
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings
from selftrain.ssl_tasks.settings.run_config import GateSettings, LearnerSettings, RunConfig, checks
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.locks import at_work

MEASURE = "selftrain.ssl_tasks.training.rehearsal:measure"
OWN_CACHE = ("decoded", "shards", "features", "estimates")  # what a rehearsal must make itself to know its cost
log = logging.getLogger("selftrain.estimate")


@dataclass(frozen=True)
class Measured:
    """The cost of one stage of a rehearsal."""

    artifact: Artifact
    request: Request
    seconds: float  # from the look into the store to the result, as the record of a run has it
    disk: int  # of its files and of what it added to the cache, in bytes

    @property
    def costs(self) -> Mapping[str, Any]:
        """The entries that the stage's own process has measured."""
        return self.artifact.summary["measured"]

    @property
    def per_image(self) -> float | None:
        """Seconds an image, where the stage itself tells them from the rest."""
        if (known := self.costs.get("per_image")) is not None:
            return float(known)
        parts, images = self.artifact.summary.get("seconds"), self.images(self.counts)
        return sum(parts.values()) / images if isinstance(parts, dict) and images else None

    @property
    def counts(self) -> Mapping[str, int]:
        """The images of each split that it was shown."""
        shown = self.request.inputs.get("dataset", self.artifact)
        return {name: shown.summary.get(name, 0) for name in ("labeled", "unlabeled", "validation", "test")}

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of which the stage reads every image; none where its cost does not grow with them."""
        read = {
            "dataset": ("labeled", "unlabeled", "validation", "test"),
            "features": ("labeled", "unlabeled", "validation", "test"),
            "predict": ("labeled", "unlabeled", "validation"),
            "select": ("labeled", "unlabeled"),
            "evaluate": ("validation", "test"),
            "train": ("labeled", "unlabeled", "validation") if is_linear(self.request) else (),
        }
        return read.get(self.request.stage, ())

    def images(self, counts: Mapping[str, int]) -> int:
        """Returns how many images the stage reads of a data set with these splits."""
        return sum(counts[name] for name in self.splits)


def is_linear(request: Request) -> bool:
    """Returns whether a model is fitted on stored features, and not trained by steps."""
    return request.stage == "train" and "features" in request.inputs


class Rehearsal:
    """Answers every request by measuring it, or by a stage that costs the same; see `Answers`."""

    def __init__(
        self, folder: Path, workspace: Path, config: RunConfig, fingerprint: str, reused: Mapping[str, str]
    ) -> None:
        self.folder, self.real, self.logs, self.digest = (
            folder,
            Store(workspace / "store"),
            workspace / "logs",
            fingerprint,
        )
        self.reused = reused  # keys of stages in the real store, by name
        self.store = Store(folder / "store")
        self.processes = config.runtime.processes * config.runtime.nodes
        self.runtime = config.runtime
        if self.processes > 1:
            threads = max(1, (config.runtime.threads or os.cpu_count() or 1) // config.runtime.processes)
            self.runtime = config.runtime.model_copy(update={"threads": threads, "processes": 1, "nodes": 1})
        self.runtime = self.runtime.model_copy(update={"task_runner": "local"})
        self.most: int | None = None
        self.source_counts: Mapping[str, int] = {}
        self.known: dict[str, Measured] = {}  # by what a stage's cost depends on
        self.stages: dict[str, Measured] = {}

    def smaller(self, folder: Path) -> "Rehearsal":
        """Returns a rehearsal on a quarter of the images, which takes over the trainings of this one."""
        few = copy(self)
        few.folder, few.store, few.stages = folder, Store(folder / "store"), {}
        few.known = {cost: one for cost, one in self.known.items() if not one.splits}
        few.most = (self.most or 0) // 4
        return few

    def fingerprint(self, config: RunConfig) -> str:
        """Returns the digest of the source, which the plan knows."""
        return self.digest

    def run(self, request: Request, round_number: int) -> Artifact:
        """Returns an artifact of the sample, or a model or weights from the real store."""
        if request.stage == "train" and request.name in self.reused and not is_linear(request):
            return self._stored("train", self.reused[request.name])
        if request.stage == "weights" and self.real.path("weights", request.key).is_dir():
            return self._stored("weights", request.key)
        cost = repr(sorted(_cost_parts(request).items()))
        if cost not in self.known:
            log.info("measuring %s …", request.name)
            self.known[cost] = self._measured(request)
        self.stages[request.name] = self.known[cost]
        return self.known[cost].artifact

    def _stored(self, stage: str, key: str) -> Artifact:
        """Returns an artifact of the real store; models of this one find the weights that they differ from."""
        found, place = self.real.unchecked(stage, key), self.store.path(stage, key)
        assert found is not None, "the plan has found it"
        if not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(found.path)
        return found

    def _measured(self, request: Request) -> Measured:
        """Runs a stage in a process of its own, as a run does."""
        started, before = time.monotonic(), disk_usage(self.folder)
        context = begin_attempt(request, self.store, self.runtime)
        section: Section = request.section
        if request.stage == "train" and isinstance(section, LearnerSettings):
            section = share_of_batch(section, self.processes)
        rehearsing = Rehearsing(
            **{**vars(context), "section": section}, body=request.body, most=self.most, source_counts=self.source_counts
        )
        result = run_isolated(replace(request, body=MEASURE), rehearsing, self.logs / f"estimate-{request.name}.log")
        seconds = time.monotonic() - started
        artifact = self.store.commit(request.stage, request.key, manifest_of(request, result, seconds, {}))
        if request.stage == "dataset" and not self.source_counts:
            self.source_counts = artifact.summary["measured"]["source_counts"]
            self.most = artifact.summary["measured"]["most"]
        return Measured(artifact, request, seconds, disk_usage(self.folder) - before)

    def submit(self, request: Request, round_number: int) -> Pending:
        """Measures one stage at a time, so that none disturbs another."""
        artifact = self.run(request, round_number)
        return lambda: artifact

    def corrections(self) -> Path | None:
        """Returns None: corrections name images that a sample may not have."""
        return None

    def hold(self, round_number: int, selection: Artifact) -> None:
        """Does not wait."""

    def approve(self, selection: Artifact) -> None:
        """Approves nothing."""


def share_of_batch(learner: LearnerSettings, processes: int) -> LearnerSettings:
    """Returns the settings of one of several processes, which share each batch."""
    share = max(1, learner.train.batch_size // processes)
    return learner.model_copy(update={"train": learner.train.model_copy(update={"batch_size": share})})


def _cost_parts(request: Request) -> dict[str, Any]:
    """Returns what the cost of a stage depends on: its settings and its inputs' networks, not their weights."""
    inputs = {
        role: (one.stage, one.manifest["settings"].get("model"), one.manifest["settings"].get("image_size"))
        for role, one in request.inputs.items()
    }
    section = request.section.identity()
    return {"body": request.body, "section": section, **{f"input {role}": found for role, found in inputs.items()}}


def estimated(config: RunConfig, workspace: Path, planned: Sequence[PlannedStage]) -> list[PlannedStage]:
    """Returns the plan with an estimate for each stage that is not reused."""
    from selftrain.ssl_tasks.data.sources import fingerprint

    if all(one.action == "reuse" for one in planned):
        return list(planned)
    cache, reused = workspace / "cache", {one.name: one.key for one in planned if one.action == "reuse"}
    digest = fingerprint(config.data, cache)
    missing = absent_weights(config, Store(workspace / "store"))
    rehearsed = for_a_rehearsal(config, missing)
    with own_folders(cache) as (first, second), at_work(workspace), quiet():
        started = time.monotonic()
        await_fork_server()
        start = time.monotonic() - started
        whole = Rehearsal(first, workspace, rehearsed, digest, reused)
        self_training(rehearsed, whole)
        few = None
        if whole.most is not None and max(whole.source_counts.values()) > whole.most:
            few = whole.smaller(second)
            self_training(rehearsed, few)
    found = [
        one if one.action == "reuse" else replace(one, estimate=estimate(one.name, config, whole, few))
        for one in planned
    ]
    return with_start(found, start)


def with_start(planned: Sequence[PlannedStage], seconds: float) -> list[PlannedStage]:
    """Adds the start of the process that starts stages to the first one, which waits for it in a run, too."""
    first = next(number for number, one in enumerate(planned) if one.estimate is not None)
    found = list(planned)
    waits = found[first].estimate
    assert waits is not None
    found[first] = replace(found[first], estimate=replace(waits, seconds=round(waits.seconds + seconds, 3)))
    return found


def absent_weights(config: RunConfig, store: Store) -> set[tuple[str, object]]:
    """Returns the pretrained weights, by network and place, that a run would fetch."""
    return {
        (learner.model.name, learner.model.pretrained)
        for _, stage, learner in checks(config)
        if stage
        and weights_file(learner.model) is None
        and not store.path("weights", weights_request(stage, learner.model).key).is_dir()
    }


def for_a_rehearsal(config: RunConfig, missing: Collection[tuple[str, object]]) -> RunConfig:
    """Returns the recipe such that it goes through all rounds with networks that have hardly learnt anything.

    All pseudo-labels are accepted, no gate stops, no round waits for a person, and no weights are fetched.
    """

    def trained(learner: LearnerSettings) -> LearnerSettings:
        if (learner.model.name, learner.model.pretrained) not in missing:
            return learner
        return learner.model_copy(update={"model": learner.model.model_copy(update={"pretrained": None})})

    rounds = tuple(
        one.model_copy(
            update={
                "select": SelectSettings(
                    threshold=None, balance="none", soft=one.select.soft, sharpen=one.select.sharpen
                ),
                "gate": GateSettings(enabled=False),
                "hold": False,
                "student": trained(one.student),
            }
        )
        for one in config.rounds
    )
    update: dict[str, Any] = {"rounds": rounds, "teacher": trained(config.teacher)}
    update["other_teachers"] = tuple(map(trained, config.other_teachers))
    update["pretrain"] = None if config.pretrain is None else trained(config.pretrain)
    return config.model_copy(update=update)


def estimate(name: str, config: RunConfig, whole: Rehearsal, few: Rehearsal | None) -> Estimate | None:
    """Returns what a stage will cost; None for one that was not measured."""
    found = whole.stages.get(name)
    if found is None:
        return None  # weights that a run fetches first
    seconds, disk, temporary, memory = found.seconds, float(found.disk), 0, found.costs["memory"]
    notes = list[str]()
    seconds -= found.costs.get("spent_seconds", 0.0)
    if "loop_seconds" in found.costs:
        seconds += found.costs["loop_seconds"]
        temporary = found.costs["checkpoint_bytes"]
        memory *= config.runtime.processes
        notes += training_notes(found.request, config)
    growth = found.images(whole.source_counts) - found.images(found.counts)
    if few is not None and growth > 0:
        smaller = few.stages[name]
        images = found.images(found.counts) - smaller.images(smaller.counts)
        if images > 0:
            slope = (found.costs["body_seconds"] - smaller.costs["body_seconds"]) / images
            seconds += growth * max(0.0, slope if found.per_image is None else found.per_image)
            disk += growth * max(0.0, (found.disk - smaller.disk) / images)
            notes.append(f"carried from samples of at most {whole.most:,} images of a split to the whole data set")
    if config.runtime.parallel > 1:
        notes.append(f"up to {config.runtime.parallel} stages compute at the same time, and their memory adds up")
    if found.request.stage == "predict" and config.runtime.task_runner == "ray":
        notes.append("measured on this machine alone; a Ray cluster is faster")
    return Estimate(round(seconds, 3), int(memory), int(disk), int(temporary), found.costs["gpu_memory"], tuple(notes))


def total(planned: Sequence[PlannedStage]) -> Estimate:
    """Returns what a whole run will cost, one stage after the other: its memory is that of the largest stage."""
    found = [one.estimate for one in planned if one.estimate is not None]
    gpu = [one.gpu_memory_bytes for one in found if one.gpu_memory_bytes is not None]
    return Estimate(
        seconds=round(sum(one.seconds for one in found), 3),
        memory_bytes=max((one.memory_bytes for one in found), default=0),
        disk_bytes=sum(one.disk_bytes for one in found),
        temporary_bytes=max((one.temporary_bytes for one in found), default=0),
        gpu_memory_bytes=max(gpu, default=None),
    )


def training_notes(request: Request, config: RunConfig) -> Iterator[str]:
    """Yields what a person should know about the estimate of a training."""
    learner, runtime = request.section, config.runtime
    assert isinstance(learner, LearnerSettings)
    if learner.train.patience is not None:
        yield "train.patience may end the training earlier"
    if (processes := runtime.processes * runtime.nodes) > 1:
        yield f"measured in one process of {processes}, without the time in which they exchange gradients"


@contextmanager
def own_folders(cache: Path) -> Iterator[tuple[Path, Path]]:
    """Two workspaces for rehearsals, on the disk of the real one. They see what is known of the source's files."""
    (cache / "estimates").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache / "estimates") as folder:
        found = Path(folder) / "sample", Path(folder) / "few"
        for one in found:
            (one / "cache").mkdir(parents=True)
            for entry in cache.iterdir():
                if entry.name not in OWN_CACHE:
                    (one / "cache" / entry.name).symlink_to(entry)
        yield found


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back warnings about rehearsals: they are about a sample, and the plan or the run gives its own."""
    logger = logging.getLogger("selftrain")
    level, own = logger.level, log.level
    log.setLevel(logger.getEffectiveLevel())
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        log.setLevel(own)


def disk_usage(folder: Path) -> int:
    """Returns the bytes of the files in a folder; of a file with two names, once; of links, nothing."""
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            entry = os.lstat(os.path.join(path, name))
            found[entry.st_ino] = entry.st_size
    return sum(found.values())
