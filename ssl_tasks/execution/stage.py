"""Defines a stage: a request, a body that turns artifacts and one section into files, and the steps to an artifact.

The steps are `look_up`, `begin_attempt` and `commit`; the caller must hold the lock of the request's key.
`selftrain.flows.rounds.conductor` takes them for a run; `execute` takes them in this process, without a run.
"""

import hashlib
import importlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selftrain.ssl_tasks.errors import DamagedArtifact
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.store.artifacts import Artifact, Store, stage_key, verified
from selftrain.ssl_tasks.store.mirror import mirror_of

log = logging.getLogger("selftrain")


@dataclass(frozen=True)
class Request:
    """A request to run or reuse a stage. Its key is made of the digests in `depends`, by default of all its inputs."""

    name: str  # its name within a run: student-2
    stage: str  # the kind, and the folder in the store: train
    version: int
    body: str  # module:function
    section: Section
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    depends: Mapping[str, str] | None = None
    seed: int = 0

    def key_parts(self) -> dict[str, Any]:
        """Returns the parts whose hash is the key; the manifest keeps them, so that `explain` can compare two keys."""
        digests = {role: artifact.digest for role, artifact in self.inputs.items()}
        return {
            "stage": self.stage,
            "version": self.version,
            "section": {**self.section.identity(), "seed": self.seed},
            "inputs": dict(digests if self.depends is None else self.depends),
        }

    @property
    def key(self) -> str:
        return stage_key(**self.key_parts())


@dataclass(frozen=True)
class StageContext:
    """Everything that a stage's body may use: its settings, inputs and folders."""

    section: Section  # the stage's typed settings
    inputs: Mapping[str, Artifact]  # upstream artifacts by role
    output: Path  # an empty folder; its files become the artifact
    scratch: Path  # checkpoints and finished shards: survives a kill, deleted after the commit
    cache: Path  # workspace-wide caches that can be rebuilt: decoded images, shards
    runtime: RuntimeSettings = RuntimeSettings()
    events: Path | None = None  # JSON lines that the tracker ships: metrics and progress
    seed: int = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Hands metrics of a step to the tracker by writing one line to a local file; it never waits for a server."""
        self._emit({"metrics": dict(values), "step": step})

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Reports that `done` of `total` units are done."""
        self._emit({"progress": [done, total], "what": what})

    def _emit(self, event: Mapping[str, Any]) -> None:
        if self.events is not None:
            with self.events.open("a") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")


@dataclass(frozen=True)
class Rehearsing(StageContext):
    """The context of a stage that is measured on a sample of the images (`selftrain.ssl_tasks.training.rehearsal`)."""

    body: str = ""  # module:function of the stage
    most: int | None = None  # images of a split; None: by their size
    source_counts: Mapping[str, int] = field(default_factory=dict)  # images of each split of the whole data set


@dataclass(frozen=True)
class StageResult:
    """The result of a stage's body: small JSON values for tables, and digests of parts that stages can depend on
    alone."""

    summary: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The artifact of a request, and whether it was reused."""

    artifact: Artifact
    reused: bool
    seconds: float
    replaced: str = ""  # the damage of an artifact that was moved aside and recomputed


Body = Callable[[StageContext], StageResult]


def load_body(path: str) -> Body:
    """Returns the function that `module:function` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def look_up(
    request: Request, store: Store, runtime: RuntimeSettings, force: bool = False
) -> tuple[Artifact | None, str]:
    """Returns the artifact of the request's key from the store or the shared store, and the damage if it is unusable.

    With `force` it returns none and moves an existing artifact aside.
    """
    key, mirror, found, replaced = request.key, mirror_of(runtime), None, ""
    if force:
        store.quarantine(request.stage, key)
    try:
        found = store.find(request.stage, key)
    except DamagedArtifact as error:
        aside = store.quarantine(request.stage, key)
        replaced = f"the stored artifact was damaged ({error}) and was moved to {aside}"
        log.warning("%s is recomputed: %s", request.name, replaced)
    if found is not None and mirror is not None:
        mirror.offer(found)  # an earlier run may have failed to offer it
    elif mirror is not None and not force:
        found = mirror.fetch(store, request.stage, key)
    return found, replaced


def begin_attempt(request: Request, store: Store, runtime: RuntimeSettings) -> StageContext:
    """Checks the inputs and returns the context of the request's body, in the folder of its attempt."""
    attempt, cache = store.attempt(request.stage, request.key), store.root.parent / "cache"
    shutil.rmtree(attempt / "output", ignore_errors=True)  # output of an attempt that died; its scratch is kept
    for folder in (attempt / "output", attempt / "scratch", cache):
        folder.mkdir(parents=True, exist_ok=True)
    for artifact in request.inputs.values():
        if artifact.path.is_relative_to(store.root):  # a program may pass folders of its own
            verified(artifact)
    return StageContext(
        section=request.section,
        inputs=request.inputs,
        output=attempt / "output",
        scratch=attempt / "scratch",
        cache=cache,
        runtime=runtime,
        events=attempt / "events.jsonl",
        seed=request.seed,
    )


def manifest_of(request: Request, result: StageResult, seconds: float, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the manifest of the request's artifact, without the entries that the store adds."""
    return {
        "key_parts": request.key_parts(),
        "inputs": {
            role: {"stage": artifact.stage, "key": artifact.key, "digest": artifact.digest}
            for role, artifact in request.inputs.items()
        },
        "settings": json.loads(request.section.model_dump_json()),
        "summary": dict(result.summary),
        "parts": dict(result.parts),
        "seconds": round(seconds, 3),
        "finished": time.time(),
        "provenance": dict(provenance),
    }


def commit(
    request: Request,
    result: StageResult,
    store: Store,
    runtime: RuntimeSettings,
    seconds: float,
    provenance: Mapping[str, Any],
    force: bool = False,
) -> Artifact:
    """Turns the body's output into the request's artifact, and offers it to the shared store."""
    artifact = store.commit(request.stage, request.key, manifest_of(request, result, seconds, provenance))
    if (mirror := mirror_of(runtime)) is not None:
        mirror.offer(artifact, replace=force)
    return artifact


def execute(request: Request, workspace: Path, runtime: RuntimeSettings | None = None, force: bool = False) -> Outcome:
    """Reuses a request's artifact or runs its body in this process, without a run; for benchmarks and tests."""
    started, store, runtime = time.monotonic(), Store(workspace / "store"), runtime or RuntimeSettings()
    with store.lock(request.stage, request.key):
        found, replaced = look_up(request, store, runtime, force)
        if found is not None:
            return Outcome(found, True, time.monotonic() - started, replaced)
        result = load_body(request.body)(begin_attempt(request, store, runtime))
        seconds = time.monotonic() - started
        return Outcome(commit(request, result, store, runtime, seconds, {}, force), False, seconds, replaced)


def derive_seed(seed: int, *names: object) -> int:
    """Returns a seed below 2^63 that depends on the seed and on every name, so that random streams are independent."""
    text = "\0".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
