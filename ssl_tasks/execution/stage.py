"""Defines a stage: a name, a version, and a body that turns artifacts and one section into a new artifact."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.store.artifacts import Artifact


@dataclass(frozen=True)
class StageContext:
    """All that a stage's body may touch. It runs in a process of its own."""

    section: Section  # what is asked: the stage's typed settings
    inputs: Mapping[str, Artifact]  # upstream artifacts by role
    output: Path  # an empty folder; its files become the artifact
    scratch: Path  # checkpoints and finished shards: survives a kill, gone after the commit
    cache: Path  # workspace-wide caches that can be rebuilt: decoded images, shards
    runtime: RuntimeSettings = RuntimeSettings()
    events: Path | None = None  # JSON lines that the tracker ships: metrics and progress
    seed: int = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Hands metrics of a step to the tracker; costs one line in a local file, and never waits for a server."""
        self._emit({"metrics": dict(values), "step": step})

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Tells how far the stage is."""
        self._emit({"progress": [done, total], "what": what})

    def _emit(self, event: Mapping[str, Any]) -> None:
        if self.events is not None:
            with self.events.open("a") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")


@dataclass(frozen=True)
class StageResult:
    """The result of a stage's body: small JSON values for tables, and digests of parts that stages can depend on
    alone."""

    summary: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)


Body = Callable[[StageContext], StageResult]
