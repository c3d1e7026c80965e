"""Plans a run before it starts, and explains afterwards why a stage was computed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from selftrain.flows.rounds.self_training import Pending, self_training
from selftrain.ssl_tasks.errors import DamagedArtifact, NotFound
from selftrain.ssl_tasks.execution.stage import Request
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.runs import Run, StageRecord, all_runs, corrections_file
from selftrain.ssl_tasks.store.stage_names import stage_names


@dataclass(frozen=True)
class Estimate:
    """The cost of a stage on this machine, if it is computed to its end."""

    seconds: float
    memory_bytes: int  # of the stage's processes, at most
    disk_bytes: int  # of its files and of what it adds to the cache
    temporary_bytes: int = 0  # of checkpoints, which are deleted after a training
    gpu_memory_bytes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan."""

    name: str
    action: Literal["reuse", "compute", "unknown"]
    key: str
    why: str
    estimate: Estimate | None = None  # where it was asked for: of stages that are not reused


class _Unanswered(Exception):
    """The store has no answer, so what follows has no key yet."""


class _Planner:
    """Answers from the store alone, and notes every question."""

    def __init__(self, config: RunConfig, workspace: Path, force: frozenset[str]) -> None:
        self.config = config
        self.workspace, self.force, self.store = workspace, force, Store(workspace / "store")
        self.stages: list[PlannedStage] = []

    def fingerprint(self, config: RunConfig) -> str:
        from selftrain.ssl_tasks.data.sources import fingerprint

        return fingerprint(config.data, self.workspace / "cache")

    def run(self, request: Request, round_number: int) -> Artifact:
        found = None
        why = "not in the store"
        try:
            found = self.store.find(request.stage, request.key, verify=False)
        except DamagedArtifact as error:
            why = f"damaged: {error}"
        if found is not None and request.name not in self.force:
            self.stages.append(PlannedStage(request.name, "reuse", request.key, "in the store"))
            return found
        if found is not None:
            why = "named to be recomputed"
        elif (before := last_record(self.workspace, request.name, request.key)) is not None:
            why = "; ".join(differences(before.key_parts, request.key_parts())) or why
        self.stages.append(PlannedStage(request.name, "compute", request.key, why))
        raise _Unanswered

    def submit(self, request: Request, round_number: int) -> Pending:
        artifact = self.run(request, round_number)
        return lambda: artifact

    def corrections(self) -> Path | None:
        return corrections_file(self.workspace, self.config.name)

    def hold(self, round_number: int, selection: Artifact) -> None:
        """A plan does not wait."""

    def approve(self, selection: Artifact) -> None:
        """Nor does it approve."""


def plan(config: RunConfig, workspace: Path, force: frozenset[str] = frozenset()) -> list[PlannedStage]:
    """Every stage of a run: reused, computed and why, or unknown because it depends on one that is computed."""
    planner = _Planner(config, workspace, force)
    try:
        self_training(config, planner)
    except _Unanswered:
        waits_for = planner.stages[-1].name
        met = {stage.name for stage in planner.stages}
        planner.stages += [
            PlannedStage(name, "unknown", "", f"depends on the result of {waits_for}")
            for name in stage_names(config)
            if name not in met
        ]
    return planner.stages


def last_record(workspace: Path, stage: str, other_than: str = "", before: Run | None = None) -> StageRecord | None:
    """The newest record of a stage of that name (of an earlier run than `before`), with another key if one is given."""
    runs = list(all_runs(workspace))
    if before is not None:
        runs = list(takewhile(lambda run: run.id != before.id, runs))
    for run in reversed(runs):
        for record in run.stages():
            if record.name == stage and record.key and record.key != other_than:
                return record
    return None


@dataclass(frozen=True)
class Explanation:
    """Why a stage of a run was computed or reused."""

    stage: str
    state: str
    key: str
    before: str  # the key that it had in the run before, if any
    differences: tuple[str, ...]
    sentence: str


def explain(run: Run, stage: str) -> Explanation:
    """Explains why a stage was computed or reused: which parts of its key differ from the previous run's."""
    record = run.stage(stage)
    if not record.key:
        raise NotFound(
            f"stage '{stage}' of run {run.id} has not started, so it has no key yet. See: selftrain status {run.id}"
        )
    before = last_record(run.workspace, stage, before=run)
    found = tuple(differences(before.key_parts, record.key_parts)) if before else ()
    if record.state == "reused":
        sentence = "reused: the store has an artifact with the same key"
    elif before is None:
        sentence = f"{record.state}: no earlier run of this workspace has this stage"
    elif found:
        sentence = f"{record.state}: its key differs from the previous run's"
    else:
        sentence = (
            f"{record.state}: its key is the same as before, but its artifact was missing, damaged or named in a rerun"
        )
    return Explanation(stage, record.state, record.key, before.key if before else "", found, sentence)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The parts of two keys that differ, one sentence each."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for name in sorted({**old, **new}, key=str):
        if old.get(name) != new.get(name):
            label = name.removeprefix("section.")
            if name.startswith("inputs."):
                yield f"input {name.removeprefix('inputs.')} has changed"
            else:
                yield f"{label}: {old.get(name, 'absent')} → {new.get(name, 'absent')}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
