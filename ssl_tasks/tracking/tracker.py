"""Records a run for MLflow. Nothing here imports MLflow, waits for it, or fails because of it.

Runs have local ids until the shipper has created them in MLflow. Every call is one line in the spool. A Follower copies
a stage's events into the spool, and samples the machine's load at a low rate.
"""

import contextlib
import json
import logging
import math
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from selftrain.ssl_tasks.execution.progress import Show
from selftrain.ssl_tasks.execution.startup import parent_of_mine, safe_path
from selftrain.ssl_tasks.store.artifacts import Artifact, write_atomically
from selftrain.ssl_tasks.store.json_file import Malformed, Shape, read_json
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.spool import Spool, spools, without_password

log = logging.getLogger("selftrain.tracking")
EXPERIMENT = "selftrain"
Ending = Literal["FINISHED", "FAILED", "KILLED"]
_ahead: "dict[tuple[Path, str], subprocess.Popen[str]]" = {}  # shippers that wait, by workspace and server
POLL_SECONDS = 0.5
SYSTEM_SECONDS = 10.0
BATCH = 1_000  # MLflow's limit of metrics per request
Row = tuple[str, float, int, int]  # name, value, milliseconds, step


def metric_name(name: str) -> str:
    """Returns a metric name with only characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]


def metric_rows(values: Mapping[str, Any], seconds: float, step: int) -> Iterator[Row]:
    """Returns the finite numbers among some values, as rows."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield metric_name(name), float(value), int(seconds * 1000), step


def spool_rows(spool: Spool, run: str, rows: Iterable[Row]) -> None:
    """Adds rows to the spool, in batches of a size that a server accepts."""
    ready = list(rows)
    for start in range(0, len(ready), BATCH):
        spool.append("metrics", run=run, rows=ready[start : start + BATCH])


class Mark(Shape):
    """The shape of a mark: how far an attempt's events were spooled, and to which run."""

    run: str
    offset: int


class Follower(threading.Thread):
    """Follows one attempt of a stage. Events of an earlier attempt that were not spooled go to that attempt's run."""

    def __init__(self, spool: Spool, run: str, events: Path, show: Show | None = None) -> None:
        super().__init__(name=f"follow-{run[:8]}", daemon=True)
        self.spool, self.local, self.events = spool, run, events
        self.mark = events.with_name(events.name + ".followed")
        self.ended = threading.Event()
        self.offset = 0
        self.progress: tuple[int, int, str] | None = None  # done, total, what
        self.show = show  # called with each progress
        before: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, Malformed):
            before = read_json(self.mark, Mark)
        if before:
            self.offset = before["offset"]
            self._drain(before["run"])
            spool.append("supersedes", run=run, before=before["run"])

    def run(self) -> None:
        """Polls until stopped."""
        sampled = time.monotonic()
        psutil.cpu_percent()  # the first call only sets the reference
        step = 0
        while not self.ended.wait(POLL_SECONDS):
            self._drain(self.local)
            if time.monotonic() - sampled >= SYSTEM_SECONDS:
                sampled, step = time.monotonic(), step + 1
                spool_rows(self.spool, self.local, metric_rows(machine_load(self.events.parent), time.time(), step))

    def stop(self) -> None:
        """Spools the rest of the events. Call it before the stage's artifact is committed, which removes the file."""
        self.ended.set()
        if self.is_alive():
            self.join()
        self._drain(self.local)

    def _drain(self, run: str) -> None:
        try:
            with self.events.open("rb") as file:
                file.seek(self.offset)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            return
        rows: list[Row] = []
        before = self.progress
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):  # cut off by a kill or a full disk
                continue
            if not isinstance(event, dict) or not isinstance(event.get("time"), (int, float)):
                continue
            if "progress" in event:
                self.progress = (*event["progress"], event.get("what", ""))
            rows += metric_rows(event.get("metrics", {}), event["time"], event.get("step", 0))
        if self.show is not None and self.progress is not None and self.progress != before:
            self.show(*self.progress)
        spool_rows(self.spool, run, rows)
        self.offset += len(whole)
        try:
            write_atomically(self.mark, json.dumps({"run": run, "offset": self.offset}))
        except OSError as error:  # a run must not fail for its tracking; at worst MLflow gets a number twice
            log.error("%s cannot be written: %s", self.mark, error)


def machine_load(folder: Path) -> dict[str, float]:
    """Returns the host's load, with the names that MLflow shows as system metrics."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(folder))
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/disk_usage_percentage": disk.percent,
    }


@dataclass(frozen=True)
class Report:
    """The result of replaying: the numbers of operations sent, left and refused, and why some are left.

    `champion` is a sentence about a model of this process that became champion, else empty.
    """

    sent: int = 0
    left: int = 0
    rejected: int = 0
    reason: str = ""
    champion: str = ""


class Tracker:
    """Tracks the runs of one process. With `ship=False` it only spools, and `sync` sends later."""

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
        """Starts a pipeline run: `settings` (name.of.setting → value) become parameters, the YAML a file.

        With the `local` id of an earlier run, that run is continued; without one, a new run is started.
        """
        run = self._start(name, None, tags, local)
        self.spool.append("params", run=run, params={key: str(value) for key, value in settings.items()})
        if config_yaml:
            self.spool.append("text", run=run, text=config_yaml, file="config.yaml")
        return run

    def start_stage(self, parent: str, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Starts a child run for one attempt of a stage."""
        return self._start(name, parent, tags)

    def follow(self, run: str, events: Path, show: Show | None = None) -> Follower:
        """Ships an attempt's events while it runs, and tells `show` of its progress.

        `.stop()` it before the artifact is committed.
        """
        follower = Follower(self.spool, run, events, show)
        follower.start()
        return follower

    def finish_stage(self, run: str, artifact: Artifact, round_number: int = 0) -> None:
        """Records the artifact of an attempt with its inputs, outputs, numbers and small files, and ends the run."""
        self.spool.append("artifact", run=run, round=round_number, **_carried(artifact))
        self._end(run, "FINISHED")

    def fail_stage(self, run: str, reason: str, killed: bool = False) -> None:
        """Ends the run of an attempt that failed or was stopped."""
        self.spool.append("tags", run=run, tags={"selftrain.reason": reason})
        self._end(run, "KILLED" if killed else "FAILED")

    def link_reused(self, parent: str, name: str, artifact: Artifact, round_number: int = 0) -> None:
        """Links the pipeline run to the run that computed a reused artifact."""
        self.spool.append("reused", run=parent, name=name, round=round_number, **_carried(artifact))

    def log_file(self, run: str, path: Path, folder: str = "") -> None:
        """Copies a file (a report, a log) to the run's artifacts."""
        self.spool.append("file", run=run, path=str(Path(path).absolute()), folder=folder)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a run; the last value counts."""
        self.spool.append("tags", run=run, tags=dict(tags))

    def promote(self, run: str, model: Artifact, score: float, name: str, validation_digest: str = "") -> None:
        """Registers a model as `name` and makes it champion if it beats the current champion on validation.

        The run's tag `selftrain.champion` states the result.
        """
        values = {"score": score, "name": name, "validation": validation_digest}
        self.spool.append("promote", run=run, **values, **_carried(model))

    def finish_run(self, run: str, ending: Ending = "FINISHED", tags: Mapping[str, str] | None = None) -> None:
        """Ends the pipeline run."""
        if tags:
            self.set_tags(run, tags)
        self._end(run, ending)

    def close(self, timeout: float = 60.0) -> Report:
        """Sends the rest, unless the server does not answer; then the next run or `sync` sends it."""
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
    """Sends everything that waits in a workspace, each spool to its own server or all to `uri`; safe to repeat."""
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
    """Adds the credentials in the environment to the address of a spool, which holds none."""
    uri = default_uri(workspace)
    return uri if without_password(uri) == target else target


def _carried(artifact: Artifact) -> dict[str, Any]:
    """Returns an artifact with its manifest, so that it can be tracked even after its folder was deleted."""
    return {"path": str(artifact.path), "manifest": dict(artifact.manifest)}


def start_ahead(workspace: Path, uri: str) -> None:
    """Starts the shipper of the next `Tracker` of this process early, because importing MLflow takes time."""
    key = (Path(workspace).absolute(), uri)
    if key not in _ahead:
        _ahead[key] = _start_shipper(*key)


def _shipper_of(spool: Spool, workspace: Path, uri: str) -> "subprocess.Popen[str]":
    """Returns a shipper process that replays this spool."""
    shipper = _ahead.pop((workspace, uri), None)
    if shipper is None or shipper.poll() is not None:
        shipper = _start_shipper(workspace, uri)
    assert shipper.stdin is not None
    shipper.stdin.write(f"{spool.path.name}\n")
    shipper.stdin.flush()
    return shipper


def _start_shipper(workspace: Path, uri: str, everything: bool = False) -> "subprocess.Popen[str]":
    """Starts a shipper in its own process, so that MLflow's import and requests do not slow the run down.

    It waits for a line with the name of its spool (empty: spools of dead processes), and later for "end". Its output is
    one report.
    """
    log = workspace / "tracking" / "shipper.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **safe_path(), **parent_of_mine()}
    environment["SELFTRAIN_TRACKING_URI"] = uri  # not an argument, because it may contain a password
    command = [sys.executable, "-m", "selftrain.ssl_tasks.tracking.shipper", str(workspace), str(int(everything))]
    with log.open("a") as file:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment, text=True
        )


def _report(output: str) -> Report:
    """Reads the report from the last line of the output; other lines were printed by libraries."""
    try:
        return Report(**json.loads((output.splitlines() or [""])[-1]))
    except (ValueError, TypeError):
        return Report(left=1, reason="the process that sends records died; see shipper.log")
