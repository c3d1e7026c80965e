"""What a run tells MLflow, in words of the pipeline. Nothing here imports MLflow, waits for it, or fails with it.

Runs have local ids, which are MLflow's once the shipper has created them; every call is one line in the spool.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selftrain.ssl_tasks.execution.progress import Show
from selftrain.ssl_tasks.execution.startup import parent_of_mine, safe_path
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.follower import Follower
from selftrain.ssl_tasks.tracking.spool import Spool, spools, without_password

EXPERIMENT = "selftrain"
Ending = Literal["FINISHED", "FAILED", "KILLED"]
_ahead: "dict[tuple[Path, str], subprocess.Popen[str]]" = {}  # shippers that wait for a spool, by workspace and server


@dataclass(frozen=True)
class Report:
    """How replaying went: operations that reached MLflow, that wait, and that it refused; why some wait.

    `champion` says what a model of this process did to become the champion, empty where none became it.
    """

    sent: int = 0
    left: int = 0
    rejected: int = 0
    reason: str = ""
    champion: str = ""


class Tracker:
    """Tracks the runs of one process. `ship=False` only spools: `sync` sends it later."""

    def __init__(self, uri: str, workspace: Path, experiment: str | None = None, ship: bool = True) -> None:
        self.uri, self.workspace = uri, Path(workspace).absolute()
        name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        self.spool = Spool.create(self.workspace, uri, name)
        self.shipper = _shipper_of(self.spool, self.workspace, uri) if ship else None

    def start_run(
        self,
        name: str,
        settings: Mapping[str, Any],
        config_yaml: str = "",
        tags: Mapping[str, str] | None = None,
        local: str = "",
    ) -> str:
        """A pipeline run: `settings` (name.of.setting → value) become parameters, the YAML a file.

        A run of the same `local` id is gone on with; without one, it is a new run.
        """
        run = self._start(name, None, tags, local)
        self.spool.append("params", run=run, params={key: str(value) for key, value in settings.items()})
        if config_yaml:
            self.spool.append("text", run=run, text=config_yaml, file="config.yaml")
        return run

    def start_stage(self, parent: str, name: str, tags: Mapping[str, str] | None = None) -> str:
        """One attempt of a stage: a child run of its own."""
        return self._start(name, parent, tags)

    def follow(self, run: str, events: Path, show: Show | None = None) -> Follower:
        """Ships an attempt's events while it runs, and tells `show` of its progress.

        `.stop()` it before the artifact is committed.
        """
        follower = Follower(self.spool, run, events, show)
        follower.start()
        return follower

    def finish_stage(self, run: str, artifact: Artifact, round_number: int = 0) -> None:
        """The attempt made this artifact: its inputs, outputs, numbers and small files are tracked; the run ends."""
        self.spool.append("artifact", run=run, round=round_number, **_carried(artifact))
        self._end(run, "FINISHED")

    def fail_stage(self, run: str, reason: str, killed: bool = False) -> None:
        """The attempt failed, or was stopped."""
        self.spool.append("tags", run=run, tags={"selftrain.reason": reason})
        self._end(run, "KILLED" if killed else "FAILED")

    def link_reused(self, parent: str, name: str, artifact: Artifact, round_number: int = 0) -> None:
        """No new run: the pipeline run points to the run that computed the artifact."""
        self.spool.append("reused", run=parent, name=name, round=round_number, **_carried(artifact))

    def log_file(self, run: str, path: Path, folder: str = "") -> None:
        """A file that stays where it is (a report, a log) is copied to the run's artifacts."""
        self.spool.append("file", run=run, path=str(Path(path).absolute()), folder=folder)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Tags of a run; the last value counts."""
        self.spool.append("tags", run=run, tags=dict(tags))

    def promote(self, run: str, model: Artifact, score: float, name: str, validation_digest: str = "") -> None:
        """Registers a model as `name`, and gives it the alias `champion` if it beats the holder's score on validation.

        The verdict is the run's tag `selftrain.champion`.
        """
        values = {"score": score, "name": name, "validation": validation_digest}
        self.spool.append("promote", run=run, **values, **_carried(model))

    def finish_run(self, run: str, ending: Ending = "FINISHED", tags: Mapping[str, str] | None = None) -> None:
        """The pipeline run is over."""
        if tags:
            self.set_tags(run, tags)
        self._end(run, ending)

    def close(self, timeout: float = 60.0) -> Report:
        """Sends what is left, unless the server is away; what waits is sent by the next run, or by `sync`."""
        self.spool.close()
        if self.shipper is None:
            return Report(left=sum(1 for _ in self.spool.operations()))
        shipper, self.shipper = self.shipper, None
        try:
            output, _ = shipper.communicate("end\n", timeout=timeout)
        except subprocess.TimeoutExpired:
            shipper.kill()
            shipper.communicate()
            return Report(left=1, reason=f"MLflow took longer than {timeout:g} s; `selftrain sync` sends the rest")
        return _report(output)

    def _start(self, name: str, parent: str | None, tags: Mapping[str, str] | None, local: str = "") -> str:
        run = local or uuid.uuid4().hex
        self.spool.append("run", run=run, name=name, parent=parent, tags=dict(tags or {}))
        return run

    def _end(self, run: str, ending: Ending) -> None:
        self.spool.append("end", run=run, ending=ending)


def sync(workspace: Path, uri: str | None = None) -> Report:
    """Sends everything that waits in a workspace, each spool to its own server, or all to `uri`. Twice is once."""
    workspace = Path(workspace).absolute()
    waiting = spools(workspace)
    targets = sorted({spool.header["uri"] for spool in waiting}) if uri is None else [uri]
    reports = []
    for target in targets if waiting else []:
        shipper = _start_shipper(workspace, _with_password(target, workspace), everything=uri is not None)
        reports.append(_report(shipper.communicate("\nend\n")[0]))
    return Report(
        sent=sum(one.sent for one in reports),
        left=sum(one.left for one in reports),
        rejected=sum(one.rejected for one in reports),
        reason="; ".join(one.reason for one in reports if one.reason),
    )


def _with_password(target: str, workspace: Path) -> str:
    """Spools hold the address alone; the environment knows the credentials of the server that it names."""
    uri = default_uri(workspace)
    return uri if without_password(uri) == target else target


def _carried(artifact: Artifact) -> dict[str, Any]:
    """The manifest goes along: what it says can be tracked even if the folder is gone by then."""
    return {"path": str(artifact.path), "manifest": dict(artifact.manifest)}


def start_ahead(workspace: Path, uri: str) -> None:
    """Starts the shipper of the next `Tracker` of this process: by then it has imported MLflow."""
    key = (Path(workspace).absolute(), uri)
    if key not in _ahead:
        _ahead[key] = _start_shipper(*key)


def _shipper_of(spool: Spool, workspace: Path, uri: str) -> "subprocess.Popen[str]":
    """A shipper that replays this spool."""
    shipper = _ahead.pop((workspace, uri), None)
    if shipper is None or shipper.poll() is not None:
        shipper = _start_shipper(workspace, uri)
    assert shipper.stdin is not None
    shipper.stdin.write(f"{spool.path.name}\n")
    shipper.stdin.flush()
    return shipper


def _start_shipper(workspace: Path, uri: str, everything: bool = False) -> "subprocess.Popen[str]":
    """A process of its own: MLflow's import and its requests cost the run nothing. Its output is one report.

    It waits for a line with its spool's name (empty: what dead processes left), and later for one that says "end".
    """
    log = workspace / "tracking" / "shipper.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **safe_path(), **parent_of_mine()}
    environment["SELFTRAIN_TRACKING_URI"] = uri  # not an argument: it may hold a password
    command = [sys.executable, "-m", "selftrain.ssl_tasks.tracking.shipper", str(workspace), str(int(everything))]
    with log.open("a") as file:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment, text=True
        )


def _report(output: str) -> Report:
    """The answer is the last line. Anything else was printed by others, who may have been why there is no answer."""
    try:
        return Report(**json.loads((output.splitlines() or [""])[-1]))
    except (ValueError, TypeError):
        return Report(left=1, reason="the shipper died; see shipper.log")
