"""Tails a stage's events file into the spool, and samples the machine at a low rate."""

import contextlib
import json
import logging
import math
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from selftrain.ssl_tasks.execution.progress import Show
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.json_file import Malformed, Shape, read_json
from selftrain.ssl_tasks.tracking.spool import Spool

log = logging.getLogger("selftrain.tracking")
POLL_SECONDS = 0.5
SYSTEM_SECONDS = 10.0
BATCH = 1_000  # MLflow's most metrics a request
Row = tuple[str, float, int, int]  # name, value, milliseconds, step


def metric_name(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]


def metric_rows(values: Mapping[str, Any], seconds: float, step: int) -> Iterator[Row]:
    """The finite numbers among some values, as rows."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield metric_name(name), float(value), int(seconds * 1000), step


def spool_rows(spool: Spool, run: str, rows: Iterable[Row]) -> None:
    """Adds rows in batches of a size that a server takes."""
    ready = list(rows)
    for start in range(0, len(ready), BATCH):
        spool.append("metrics", run=run, rows=ready[start : start + BATCH])


class Mark(Shape):
    """How far an attempt's events were spooled, and to which run."""

    run: str
    offset: int


class Follower(threading.Thread):
    """Follows one attempt of a stage. What an earlier attempt wrote and nobody spooled still goes to its own run."""

    def __init__(self, spool: Spool, run: str, events: Path, show: Show | None = None) -> None:
        super().__init__(name=f"follow-{run[:8]}", daemon=True)
        self.spool, self.local, self.events = spool, run, events
        self.mark = events.with_name(events.name + ".followed")
        self.ended = threading.Event()
        self.offset = 0
        self.progress: tuple[int, int, str] | None = None  # done, total, what
        self.show = show  # is told of it
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
        psutil.cpu_percent()  # the first call has nothing to compare with
        step = 0
        while not self.ended.wait(POLL_SECONDS):
            self._drain(self.local)
            if time.monotonic() - sampled >= SYSTEM_SECONDS:
                sampled, step = time.monotonic(), step + 1
                spool_rows(self.spool, self.local, metric_rows(machine_load(self.events.parent), time.time(), step))

    def stop(self) -> None:
        """Takes what is left in the file. Call before the stage's artifact is committed: then the file is gone."""
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
            except (ValueError, RecursionError):  # torn by a kill, or by a full disk
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
        except OSError as error:  # a run does not fail for its tracking; at worst MLflow gets a number twice
            log.error("%s cannot be written: %s", self.mark, error)


def machine_load(folder: Path) -> dict[str, float]:
    """The host's load, under the names that MLflow shows as system metrics."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(folder))
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/disk_usage_percentage": disk.percent,
    }
