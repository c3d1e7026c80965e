"""Reads and writes the record of a run: its recipe, its stages, and why it stopped.

`<workspace>/runs/<id>/` holds run.json, config.yaml (resolved), recipe.json (as written), stages/<name>.json,
logs/<name>.log and summary.json.
The commands status, report, labels and lineage read these files and the artifacts that they name.
"""

import json
import logging
import os
import secrets
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from pydantic import TypeAdapter, ValidationError

from selftrain.ssl_tasks.errors import DamagedRecord, NotFound, nearest
from selftrain.ssl_tasks.reading import Malformed, Shape, read_json
from selftrain.ssl_tasks.settings.recipe_text import dump_values, read_values
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact, read_manifest, verified, write_atomically
from selftrain.ssl_tasks.store.locks import file_lock, freed, held_lock
from selftrain.ssl_tasks.store.stage_names import FIRST, RoundNames

RunState = Literal["running", "waiting", "done", "failed", "interrupted", "crashed"]
log = logging.getLogger("selftrain")
RESERVE = 1 << 20  # bytes that a run reserves, so that it can record its end on a full disk
UNFINISHED = ("failed", "interrupted", "crashed")  # states of a run that `rerun` continues
StageState = Literal["pending", "running", "computed", "reused", "failed", "crashed", "interrupted"]


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run. `round` is 0 for the data set and the teacher, then 1, 2, …"""

    name: str  # student-2
    stage: str  # train
    state: StageState
    key: str = ""
    key_parts: Mapping[str, Any] = field(default_factory=dict)
    round: int = 0
    digest: str = ""
    artifact: str = ""  # the folder
    seconds: float = 0.0
    started: float = 0.0
    reason: str = ""  # the reason of a failure, in one line
    log: str = ""
    order: int = 0


@dataclass(frozen=True)
class RoundArtifacts:
    """The artifacts of a round; None for those not made yet. Round 0 has only a model and an evaluation."""

    round: int
    predictions: Artifact | None = None
    selection: Artifact | None = None
    model: Artifact | None = None
    evaluation: Artifact | None = None
    gate: Artifact | None = None


class Run:
    """A run, read from its folder."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls, workspace: Path, config: RunConfig, written: Mapping[str, Any] | None = None, **details: Any
    ) -> "Run":
        """Creates a run's folder with its resolved configuration and, if given, the recipe as `written`."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        run = cls(workspace / "runs" / f"{config.name}-{stamp}-{secrets.token_hex(2)}")
        (run.path / "stages").mkdir(parents=True)
        (run.path / "logs").mkdir()
        write_atomically(run.path / "config.yaml", dumped(config))
        if written is not None:
            write_atomically(run.path / "recipe.json", json.dumps(written, default=str) + "\n")
        (run.path / "reserve").write_bytes(bytes(RESERVE))
        who = {**owner(), **held_lock(workspace)}
        about = {"id": run.id, "name": config.name, "created": time.time(), "state": "running", "stopped": ""}
        with file_lock(workspace / "runs.lock"):
            number = max((_order(one)[0] for one in all_runs(workspace)), default=0) + 1
            run.update(**about, number=number, **who, **details)
        return run

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def workspace(self) -> Path:
        return self.path.parent.parent

    @property
    def config(self) -> RunConfig:
        """Returns the configuration as it was resolved when the run started."""
        path = self.path / "config.yaml"
        try:
            return RunConfig.model_validate(read_values(path.read_text()))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise damaged(path, error) from error

    @property
    def info(self) -> dict[str, Any]:
        """Returns the contents of run.json: id, name, created, state, stopped, host, pid, …"""
        return read_record(self.path / "run.json", RunShape)

    def update(self, **changes: Any) -> None:
        """Changes entries of run.json."""
        path = self.path / "run.json"
        before = self.info if path.exists() else {}
        write_atomically(path, json.dumps({**before, **changes}, indent=1) + "\n")

    def free_reserve(self) -> None:
        """Frees the space that was reserved for recording the run's end."""
        (self.path / "reserve").unlink(missing_ok=True)

    def record(self, stage: StageRecord) -> None:
        """Writes the record of a stage."""
        artifact, log = (
            str(Path(path).relative_to(self.workspace)) if path else "" for path in (stage.artifact, stage.log)
        )
        stage = replace(stage, artifact=artifact, log=log)
        path = self.path / "stages" / f"{stage.name}.json"
        write_atomically(path, json.dumps(asdict(stage), indent=1) + "\n")

    def stages(self) -> list[StageRecord]:
        """Returns the stages in the order of the run."""
        paths = (self.path / "stages").glob("*.json")
        records = [read_stage(path) for path in paths]
        return sorted((self._placed(record, self.workspace) for record in records), key=lambda one: one.order)

    @staticmethod
    def _placed(record: StageRecord, workspace: Path) -> StageRecord:
        """Completes the paths of a record, which are relative to the workspace because it may be moved."""
        artifact = str(workspace / record.artifact) if record.artifact else ""
        return replace(record, artifact=artifact, log=str(workspace / record.log) if record.log else "")

    def stage(self, name: str) -> StageRecord:
        """Returns a stage by its name in this run."""
        known = {stage.name: stage for stage in self.stages()}
        if name not in known:
            raise NotFound(f"run {self.id} has no stage '{name}'." + nearest(name, known))
        return known[name]

    def artifact(self, name: str) -> Artifact | None:
        """Returns the artifact of a stage, or None if it is not finished."""
        try:
            stage = self.stage(name)
            folder = Path(stage.artifact)
            return Artifact(folder, read_manifest(folder)) if stage.artifact else None
        except (NotFound, FileNotFoundError):
            return None

    @property
    def dataset(self) -> Artifact | None:
        return self.artifact(FIRST.dataset)

    def rounds(self) -> list[RoundArtifacts]:
        """Returns the artifacts of each started round; round 0 is the teacher."""
        last = max((stage.round for stage in self.stages()), default=0)
        first = RoundArtifacts(0, model=self.artifact(FIRST.model), evaluation=self.artifact(FIRST.evaluate))
        return [first] + [
            RoundArtifacts(
                names.number,
                predictions=self.artifact(names.predict),
                selection=self.artifact(names.select),
                model=self.artifact(self.model_stage(names.number)),
                evaluation=self.artifact(names.evaluate),
                gate=self.artifact(names.gate),
            )
            for names in map(RoundNames, range(1, last + 1))
        ]

    def model_stage(self, number: int) -> str:
        """Returns the stage that made a round's model: the student's training, or its fine-tuning if there was one."""
        names = RoundNames(number)
        return names.finetune if number and self.artifact(names.finetune) is not None else names.model

    @property
    def nothing_new(self) -> bool:
        """Returns whether every stage of the run was reused."""
        stages = self.stages()
        return bool(stages) and all(stage.state == "reused" for stage in stages)

    @property
    def summary(self) -> dict[str, Any]:
        """Returns the contents of summary.json, which `run --json` prints; empty for an unfinished run."""
        path = self.path / "summary.json"
        return read_record(path, SummaryShape) if path.exists() else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")

    def mend(self) -> bool:
        """Sets the state of a run whose process died to crashed; returns whether it changed."""
        info = self.info
        if info["state"] not in ("running", "waiting") or alive(info, self.workspace):
            return False
        self.free_reserve()
        for stage in self.stages():
            if stage.state == "running":
                self.record(replace(stage, state="crashed", reason="its process died"))
        self.update(state="crashed", stopped="its process died")
        return True


class WaitsFor(Shape):
    """The round whose selection waits for approval."""

    round: int


class RunShape(Shape):
    """The required entries of run.json."""

    id: str
    name: str
    created: float
    state: RunState
    stopped: str
    host: str
    pid: int
    pid_started: float
    finished: float | None = None
    lock: str = ""
    locks_on: str = ""
    waits_for: WaitsFor | None = None


class SummaryShape(Shape):
    """The required entries of summary.json."""

    best_round: int | None = None


_STAGE = TypeAdapter(StageRecord)


def read_record(path: Path, shape: type[Shape]) -> dict[str, Any]:
    """Reads a record of a run; raises DamagedRecord if it is damaged."""
    try:
        return read_json(path, shape)
    except Malformed as error:
        raise damaged(path, error) from error


def read_stage(path: Path) -> StageRecord:
    """Reads a stage's record; raises DamagedRecord if it is damaged."""
    found = read_record(path, Shape)
    try:
        return _STAGE.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(path, Malformed(f"entry '{'.'.join(map(str, first['loc']))}': {first['msg']}")) from error


def damaged(path: Path, error: Exception) -> DamagedRecord:
    """Returns the error of a damaged record, which says how to continue without it."""
    runs = next(parent for parent in path.parents if parent.name == "runs")
    run = path.relative_to(runs).parts[0]
    return DamagedRecord(
        f"{path} is damaged ({str(error).splitlines()[0]}). Restore it, or move the run's folder out of the workspace "
        f"(mv {runs / run} ELSEWHERE) and run its recipe again: finished stages are reused"
    )


def dumped(config: RunConfig) -> str:
    """Returns a resolved configuration as YAML for a run's folder."""
    return dump_values(config.model_dump(mode="json"))


def tables_folder(artifact: Artifact) -> Path:
    """Returns the folder of an artifact's tables; raises DamagedArtifact if one has changed since it was written."""
    return verified(artifact).path


def corrections_file(workspace: Path, name: str) -> Path | None:
    """Returns the file of corrections for all runs of a name, or None if there are none."""
    path = corrections_path(workspace, name)
    return path if path.exists() else None


def corrections_path(workspace: Path, name: str) -> Path:
    """Returns the path where `labels apply` writes corrections."""
    return workspace / "corrections" / f"{name}.csv"


def approval_file(workspace: Path, selection: Artifact) -> Path:
    """Returns the file that marks a selection as approved; named by its contents, so it is valid for later runs."""
    return workspace / "approvals" / selection.digest


def owner() -> dict[str, Any]:
    """Identifies this process, so that it can be told later whether it still lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": psutil.Process().create_time()}


def alive(info: Mapping[str, Any], workspace: Path | None = None) -> bool:
    """Returns whether the process of a record lives; on another host it is assumed to, unless its lock is free."""
    if info["host"] != socket.gethostname():
        return workspace is None or not freed(info, workspace)
    try:
        return abs(psutil.Process(info["pid"]).create_time() - info["pid_started"]) < 1
    except psutil.NoSuchProcess:
        return False


def all_runs(workspace: Path) -> Iterator[Run]:
    """Yields the runs of a workspace in the order of their creation, even if the clock was changed."""
    runs = [Run(path.parent) for path in (workspace / "runs").glob("*/run.json")]
    runs = [run for run in runs if _readable(run)]
    yield from sorted(runs, key=_order)


def _order(run: Run) -> tuple[int, float]:
    """Sorts runs by their number; unnumbered runs of earlier versions come first, by time."""
    info = run.info
    return info.get("number", 0), info["created"]


def _readable(run: Run) -> bool:
    """Returns whether a run can be read; a damaged run must not hide the others."""
    try:
        return bool(run.info)
    except DamagedRecord as error:
        log.warning("%s", error)
        return False


def find_run(workspace: Path, name: str = "last") -> Run:
    """Finds a run by id, unique prefix, name (the newest of it) or `last`."""
    runs = list(all_runs(workspace))
    if not runs:
        raise NotFound(f"no runs in {workspace}; start one with `selftrain run CONFIG`")
    if name == "last":
        return runs[-1]
    exact = [run for run in runs if run.id == name] or [run for run in runs if run.info["name"] == name][-1:]
    found = exact or [run for run in runs if run.id.startswith(name)]
    if len(found) > 1:
        raise NotFound(
            f"'{name}' is the beginning of {len(found)} runs: {', '.join(run.id for run in found)}. Give "
            "more of the id."
        )
    if not found:
        raise NotFound(f"no run '{name}' in {workspace}." + nearest(name, [run.id for run in runs]))
    return found[0]


def advice(run: Run) -> str:
    """Returns the next step for a run, as commands to paste; empty if the run is running or done."""
    match run.info["state"]:
        case "waiting":
            return f"review its pseudo-labels: {_command(run, 'labels')}\nthen approve them: {_command(run, 'approve')}"
        case state if state in UNFINISHED:
            return f"resume with: {_command(run, 'rerun')}   (finished stages are reused)"
    return ""


def _command(run: Run, verb: str) -> str:
    usual = Path(os.path.expanduser(os.environ.get("SELFTRAIN_HOME") or ".selftrain")).absolute()
    elsewhere = [] if run.workspace == usual else ["--workspace", str(run.workspace)]
    return shlex.join(["selftrain", *elsewhere, verb, run.id])
