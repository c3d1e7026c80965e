"""Answers a stage's question once: looks into the store, else runs the body and commits what it wrote."""

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
from selftrain.ssl_tasks.execution.stage import Body, StageContext, StageResult
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.store.artifacts import Artifact, Store, stage_key
from selftrain.ssl_tasks.store.file_digests import verified
from selftrain.ssl_tasks.store.mirror import mirror_of


@dataclass(frozen=True)
class Request:
    """One stage to be answered. `depends` are the digests that the key is made of: by default the whole inputs'."""

    name: str  # what a person calls it within a run: student-2
    stage: str  # the kind, and the folder in the store: train
    version: int
    body: str  # module:function
    section: Section
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    depends: Mapping[str, str] | None = None
    seed: int = 0

    def key_parts(self) -> dict[str, Any]:
        """Returns the parts that the key is the hash of; they are in the manifest, so that `explain` can compare two
        keys."""
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
class Outcome:
    """The artifact of a request, and whether it was there already."""

    artifact: Artifact
    reused: bool
    seconds: float
    replaced: str = ""  # where a damaged artifact was set aside: what was wrong with it


log = logging.getLogger("selftrain")
Runner = Callable[[Request, StageContext], StageResult]


def load_body(path: str) -> Body:
    """The function behind `module:function`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def run_inline(request: Request, context: StageContext) -> StageResult:
    """Runs the body in this process: for tests and notebooks."""
    return load_body(request.body)(context)


def execute(
    request: Request,
    workspace: Path,
    runtime: RuntimeSettings | None = None,
    runner: Runner = run_inline,
    force: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Outcome:
    """Reuses the artifact of the request's key, or computes it under the key's lock."""
    started, runtime = time.monotonic(), runtime or RuntimeSettings()
    store, key, mirror = Store(workspace / "store"), request.key, mirror_of(runtime)
    with store.lock(request.stage, key):
        replaced = ""
        if force:
            store.quarantine(request.stage, key)
        try:
            found = store.find(request.stage, key)
        except DamagedArtifact as error:
            aside = store.quarantine(request.stage, key)
            replaced = f"the stored artifact was damaged ({error}) and was moved to {aside}"
            log.warning("%s is recomputed: %s", request.name, replaced)
            found = None
        if found is not None and mirror is not None:
            mirror.offer(found)  # where an earlier run could not
        elif mirror is not None and not force:
            found = mirror.fetch(store, request.stage, key)
        if found is not None:
            return Outcome(found, True, time.monotonic() - started, replaced)
        attempt = store.attempt(request.stage, key)
        shutil.rmtree(attempt / "output", ignore_errors=True)  # half of an attempt that died; its scratch is kept
        for folder in (attempt / "output", attempt / "scratch", workspace / "cache"):
            folder.mkdir(parents=True, exist_ok=True)
        context = StageContext(
            section=request.section,
            inputs=request.inputs,
            output=attempt / "output",
            scratch=attempt / "scratch",
            cache=workspace / "cache",
            runtime=runtime,
            events=attempt / "events.jsonl",
            seed=request.seed,
        )
        for artifact in request.inputs.values():
            if artifact.path.is_relative_to(store.root):  # a program may hand over folders of its own
                verified(artifact)
        result = runner(request, context)
        seconds = time.monotonic() - started
        manifest = {
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
            "provenance": dict(provenance or {}),
        }
        artifact = store.commit(request.stage, key, manifest)
        if mirror is not None:
            mirror.offer(artifact, replace=force)
        return Outcome(artifact, False, seconds, replaced)
