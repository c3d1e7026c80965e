"""What a run would do, before it does it; and why a stage ran again, after it did."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from selftrain.flows.rounds.self_training import Pending, member_names, self_training
from selftrain.ssl_tasks.errors import DamagedArtifact, NotFound
from selftrain.ssl_tasks.execution.execute import Request
from selftrain.ssl_tasks.settings.run_config import RunConfig, checks
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.runs import Run, StageRecord, all_runs, corrections_file


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan."""

    name: str
    action: Literal["reuse", "compute", "unknown"]
    key: str
    why: str


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
            why = "asked for"
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
            PlannedStage(name, "unknown", "", f"depends on what {waits_for} gives")
            for name in stage_names(config)
            if name not in met
        ]
    return planner.stages


def stage_names(config: RunConfig) -> Iterator[str]:
    """The stages of a run that goes through all of its rounds, in order."""
    yield "dataset"
    met = {""}
    for check, weights, _ in checks(config):
        if weights not in met:
            met.add(weights)
            yield weights
        yield check
    if config.pretrain is not None and config.given_teacher is None:
        yield "pretrain"
    members = 1 if config.given_teacher is not None else config.teacher.members
    yield from member_names("teacher", members)
    yield from member_names("evaluate-teacher", members)
    for number, settings in enumerate(config.rounds, 1):
        members = settings.student.members
        yield f"predict-{number}"
        yield f"select-{number}"
        yield from member_names(f"student-{number}", members)
        if settings.finetune is not None:
            yield f"evaluate-student-{number}"
            yield f"dataset-{number}"
            yield from member_names(f"finetune-{number}", members)
        yield from member_names(f"evaluate-{number}", members)
        yield f"gate-{number}"


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
    """Which part of the stage's key differs from the run before."""
    record = run.stage(stage)
    if not record.key:
        raise NotFound(f"stage '{stage}' of run {run.id} has not begun, so it has no key yet")
    before = last_record(run.workspace, stage, before=run)
    found = tuple(differences(before.key_parts, record.key_parts)) if before else ()
    if record.state == "reused":
        sentence = "reused: the store had the answer to the same question"
    elif before is None:
        sentence = f"{record.state}: no earlier run of this workspace asked for this stage"
    elif found:
        sentence = f"{record.state}: its key differs from the run before"
    else:
        sentence = f"{record.state}: same question as before, but its artifact was missing, damaged or asked for anew"
    return Explanation(stage, record.state, record.key, before.key if before else "", found, sentence)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The parts of two keys that differ, one sentence each."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for name in sorted({**old, **new}, key=str):
        if old.get(name) != new.get(name):
            label = name.removeprefix("section.")
            if name.startswith("inputs."):
                yield f"input {name.removeprefix('inputs.')} has other contents"
            else:
                yield f"{label}: {old.get(name, 'absent')} → {new.get(name, 'absent')}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
