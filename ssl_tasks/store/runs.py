"""The record of a run: what was asked, which stages answered it, and why it stopped.

`<workspace>/runs/<id>/` holds run.json, config.yaml (resolved), recipe.json (as written), stages/<name>.json,
logs/<name>.log and summary.json.
Everything that looks at a run (status, report, labels, lineage) reads these files and the artifacts that they name.
"""

import json
import logging
import os
import secrets
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
from selftrain.ssl_tasks.settings.recipe_text import dump_values, read_values
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact, file_lock, read_manifest, write_atomically
from selftrain.ssl_tasks.store.file_digests import verified
from selftrain.ssl_tasks.store.json_file import Malformed, Shape, read_json
from selftrain.ssl_tasks.store.process_lock import freed, held_lock

RunState = Literal["running", "waiting", "done", "failed", "interrupted", "crashed"]
log = logging.getLogger("selftrain")
RESERVE = 1 << 20  # bytes that a run keeps, to write down how it ended when the disk is full
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
    reason: str = ""  # of a failure, in one line
    log: str = ""
    order: int = 0


@dataclass(frozen=True)
class RoundArtifacts:
    """What a round made; round 0 has a model and an evaluation alone. None where the run has not come so far."""

    round: int
    predictions: Artifact | None = None
    selection: Artifact | None = None
    model: Artifact | None = None
    evaluation: Artifact | None = None
    gate: Artifact | None = None


class Run:
    """A run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls, workspace: Path, config: RunConfig, written: Mapping[str, Any] | None = None, **details: Any
    ) -> "Run":
        """A new run's folder, with its resolved configuration, and with the recipe as `written` where there is one."""
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
        """The configuration as it was resolved when the run began."""
        path = self.path / "config.yaml"
        try:
            return RunConfig.model_validate(read_values(path.read_text()))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise damaged(path, error) from error

    @property
    def info(self) -> dict[str, Any]:
        """run.json: id, name, created, state, stopped, host, pid, …"""
        return read_record(self.path / "run.json", RunShape)

    def update(self, **changes: Any) -> None:
        """Changes entries of run.json."""
        path = self.path / "run.json"
        before = self.info if path.exists() else {}
        write_atomically(path, json.dumps({**before, **changes}, indent=1) + "\n")

    def free_reserve(self) -> None:
        """Gives back the space that was kept for the run's last words."""
        (self.path / "reserve").unlink(missing_ok=True)

    def record(self, stage: StageRecord) -> None:
        """Writes down how a stage stands."""
        artifact, log = (
            str(Path(path).relative_to(self.workspace)) if path else "" for path in (stage.artifact, stage.log)
        )
        stage = replace(stage, artifact=artifact, log=log)
        path = self.path / "stages" / f"{stage.name}.json"
        write_atomically(path, json.dumps(asdict(stage), indent=1) + "\n")

    def stages(self) -> list[StageRecord]:
        """The stages in the order in which the run met them."""
        paths = (self.path / "stages").glob("*.json")
        records = [read_stage(path) for path in paths]
        return sorted((self._placed(record, self.workspace) for record in records), key=lambda one: one.order)

    @staticmethod
    def _placed(record: StageRecord, workspace: Path) -> StageRecord:
        """Records hold paths within the workspace, which may have moved; whoever reads them gets them whole."""
        artifact = str(workspace / record.artifact) if record.artifact else ""
        return replace(record, artifact=artifact, log=str(workspace / record.log) if record.log else "")

    def stage(self, name: str) -> StageRecord:
        """One stage by its name in this run."""
        known = {stage.name: stage for stage in self.stages()}
        if name not in known:
            raise NotFound(f"run {self.id} has no stage '{name}'." + nearest(name, known))
        return known[name]

    def artifact(self, name: str) -> Artifact | None:
        """The artifact of a stage, or None where it is not finished."""
        try:
            stage = self.stage(name)
            folder = Path(stage.artifact)
            return Artifact(folder, read_manifest(folder)) if stage.artifact else None
        except (NotFound, FileNotFoundError):
            return None

    @property
    def dataset(self) -> Artifact | None:
        return self.artifact("dataset")

    def rounds(self) -> list[RoundArtifacts]:
        """Round 0 is the teacher, then one entry a round begun."""
        last = max((stage.round for stage in self.stages()), default=0)
        first = RoundArtifacts(0, model=self.artifact("teacher"), evaluation=self.artifact("evaluate-teacher"))
        return [first] + [
            RoundArtifacts(
                number,
                predictions=self.artifact(f"predict-{number}"),
                selection=self.artifact(f"select-{number}"),
                model=self.artifact(self.model_stage(number)),
                evaluation=self.artifact(f"evaluate-{number}"),
                gate=self.artifact(f"gate-{number}"),
            )
            for number in range(1, last + 1)
        ]

    def model_stage(self, number: int) -> str:
        """The stage that gave a round its model: the student's training, or its fine-tuning where there was one."""
        if not number:
            return "teacher"
        tuned = f"finetune-{number}"
        return f"student-{number}" if self.artifact(tuned) is None else tuned

    @property
    def nothing_new(self) -> bool:
        """Whether every stage that the run met had been answered before."""
        stages = self.stages()
        return bool(stages) and all(stage.state == "reused" for stage in stages)

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json, empty while the run goes on: what `run --json` ends with."""
        path = self.path / "summary.json"
        return read_record(path, SummaryShape) if path.exists() else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")

    def mend(self) -> bool:
        """If the run's process died, says so in the records: states tell the truth. True where something was mended."""
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
    """The round whose selection a person is to approve."""

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
    """A record of a run; DamagedRecord where it is not as it was written."""
    try:
        return read_json(path, shape)
    except Malformed as error:
        raise damaged(path, error) from error


def read_stage(path: Path) -> StageRecord:
    """A stage's record; DamagedRecord where it is not as it was written."""
    found = read_record(path, Shape)
    try:
        return _STAGE.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(path, Malformed(f"entry '{'.'.join(map(str, first['loc']))}': {first['msg']}")) from error


def damaged(path: Path, error: Exception) -> DamagedRecord:
    """Which record is damaged, and how to continue without it."""
    runs = next(parent for parent in path.parents if parent.name == "runs")
    run = path.relative_to(runs).parts[0]
    return DamagedRecord(
        f"{path} is damaged ({str(error).splitlines()[0]}). Restore it, or move the run's folder out of the workspace "
        f"(mv {runs / run} ELSEWHERE) and run its recipe again: finished stages are reused"
    )


def dumped(config: RunConfig) -> str:
    """A resolved configuration as the YAML of a run's folder."""
    return dump_values(config.model_dump(mode="json"))


def tables_folder(artifact: Artifact) -> Path:
    """The folder of its tables; DamagedArtifact if one of them was changed since it was written."""
    return verified(artifact).path


def corrections_file(workspace: Path, name: str) -> Path | None:
    """People's corrections for all runs of a name, or None where there are none."""
    path = corrections_path(workspace, name)
    return path if path.exists() else None


def corrections_path(workspace: Path, name: str) -> Path:
    """Where `labels apply` puts corrections."""
    return workspace / "corrections" / f"{name}.csv"


def approval_file(workspace: Path, selection: Artifact) -> Path:
    """The mark that a person has approved a selection; by its contents, so that it outlives the run."""
    return workspace / "approvals" / selection.digest


def owner() -> dict[str, Any]:
    """Who runs this, precisely enough to tell later whether it still lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": psutil.Process().create_time()}


def alive(info: Mapping[str, Any], workspace: Path | None = None) -> bool:
    """Whether the owner still lives; an owner on another host is believed to, unless its lock there is free."""
    if info["host"] != socket.gethostname():
        return workspace is None or not freed(info, workspace)
    try:
        return abs(psutil.Process(info["pid"]).create_time() - info["pid_started"]) < 1
    except psutil.NoSuchProcess:
        return False


def all_runs(workspace: Path) -> Iterator[Run]:
    """Every run of a workspace, in the order in which they were created, whatever the clock said."""
    runs = [Run(path.parent) for path in (workspace / "runs").glob("*/run.json")]
    runs = [run for run in runs if _readable(run)]
    yield from sorted(runs, key=_order)


def _order(run: Run) -> tuple[int, float]:
    """Runs from before runs were numbered come first, in the order of their times."""
    info = run.info
    return info.get("number", 0), info["created"]


def _readable(run: Run) -> bool:
    """A damaged run must not keep the others from being read."""
    try:
        return bool(run.info)
    except DamagedRecord as error:
        log.warning("%s", error)
        return False


def find_run(workspace: Path, name: str = "last") -> Run:
    """A run by id, unique prefix, name (its newest) or `last`."""
    runs = list(all_runs(workspace))
    if not runs:
        raise NotFound(f"no runs in {workspace}; start one with `selftrain run CONFIG`")
    if name == "last":
        return runs[-1]
    exact = [run for run in runs if run.id == name] or [run for run in runs if run.info["name"] == name][-1:]
    found = exact or [run for run in runs if run.id.startswith(name)]
    if len(found) > 1:
        raise NotFound(f"'{name}' fits {len(found)} runs: {', '.join(run.id for run in found)}. Give more of the id.")
    if not found:
        raise NotFound(f"no run '{name}' in {workspace}." + nearest(name, [run.id for run in runs]))
    return found[0]
