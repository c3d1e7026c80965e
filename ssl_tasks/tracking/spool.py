"""Writes and reads the local spool: every record for MLflow is first a line in a file, and is replayed in order.

`<workspace>/tracking/spool/<name>.jsonl` belongs to one process and only grows; its first line names the process and
the server. `<name>.<server>.sent` records how far it was replayed to a server, and MLflow's ids of our local ids.
`<name>.closed` says that the spool is complete. The process that replays it holds `<name>.lock`.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from selftrain.ssl_tasks.reading import Malformed, Shape, parse_json
from selftrain.ssl_tasks.store.locks import held_lock
from selftrain.ssl_tasks.store.runs import alive, owner

log = logging.getLogger("selftrain.tracking")
Operation = Mapping[str, Any]


def without_password(text: str) -> str:
    """Removes credentials from the addresses in a text, for files and messages."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


def spool_folder(workspace: Path) -> Path:
    """Returns the folder of a workspace's spools."""
    return workspace / "tracking" / "spool"


class Entry(Shape):
    """The shape of a line of a spool."""

    kind: str
    time: float


class Header(Entry):
    """The shape of the first line of a spool."""

    uri: str
    experiment: str
    host: str
    pid: int
    pid_started: float


class SentEntry(Shape):
    """The shape of a line of a `.sent` file."""

    offset: int
    ids: dict[str, str] = Field(default_factory=dict)
    retried: list[dict[str, Any]] = Field(default_factory=list)
    rejected: dict[str, Any] = Field(default_factory=dict)


def spools(workspace: Path) -> list["Spool"]:
    """Returns the spools that are not wholly sent, the oldest first; one with an incomplete first line is empty."""
    found = [Spool(path) for path in sorted(spool_folder(workspace).glob("*.jsonl"))]
    return [spool for spool in found if spool.begun]


def waiting_elsewhere(workspace: Path) -> list[str]:
    """Returns a sentence for each spool whose process on another host may still run."""
    others = [one for one in spools(workspace) if one.header["host"] != socket.gethostname() and not one.dead]
    return [
        f"{one.path} belongs to a process on {one.header['host']}, which may still run. If that host is gone: "
        f"touch {one.path.with_suffix('.closed')} && selftrain sync"
        for one in others
    ]


class Spool:
    """One spool: a file of operations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._torn = False

    @classmethod
    def create(cls, workspace: Path, uri: str, experiment: str) -> "Spool":
        """Creates a spool of this process."""
        folder = spool_folder(workspace)
        folder.mkdir(parents=True, exist_ok=True)
        spool = cls(folder / f"{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.jsonl")
        spool.append("header", uri=without_password(uri), experiment=experiment, **owner(), **held_lock(workspace))
        return spool

    def append(self, kind: str, **values: Any) -> None:
        """Adds an operation, which then survives the death of any process. On a full disk it is lost and logged,
        because a run must not fail for its tracking."""
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **values}, default=str) + "\n"
        with self._lock:
            try:
                with self.path.open("a") as file:
                    file.write("\n" + line if self._torn else line)
                self._torn = False
            except OSError as error:
                self._torn = True
                log.error("%s is not tracked: %s", kind, error)

    @property
    def begun(self) -> bool:
        """Returns whether the first line is complete."""
        try:
            return Header.model_validate(self.header).kind == "header"
        except (StopIteration, ValidationError):
            return False

    @property
    def header(self) -> dict[str, Any]:
        """Returns the process (host, pid, pid_started), the server's address, and the experiment."""
        return dict(next(self.operations())[1])

    @property
    def dead(self) -> bool:
        """Returns whether the spool is complete: its process is dead or has closed it."""
        return self.path.with_suffix(".closed").exists() or not alive(self.header, self.path.parents[2])

    def close(self) -> None:
        """Marks the spool as complete."""
        self.path.with_suffix(".closed").touch()

    def operations(self, offset: int = 0) -> Iterator[tuple[int, Operation]]:
        """Yields the complete lines from a byte offset on, each with the offset after it. Lines that a kill or a full
        disk cut off are skipped."""
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                with contextlib.suppress(Malformed):
                    yield offset, parse_json(line, Entry)

    def open_runs(self) -> dict[str, float]:
        """Returns the runs that were started in this spool and not ended, with the time of the last operation."""
        started: dict[str, float] = {}
        last = 0.0
        for _, operation in self.operations():
            last = operation["time"]
            if operation["kind"] == "run":
                started[operation["run"]] = last
            elif operation["kind"] == "end":
                started.pop(operation["run"], None)
        return dict.fromkeys(started, last)


@dataclass
class Sent:
    """The progress of replaying a spool to one server. The file is only appended to, so it is never damaged in the
    middle."""

    path: Path
    offset: int = 0
    ids: dict[str, str] = field(default_factory=dict)  # local run id → MLflow run id
    rejected: list[dict[str, Any]] = field(default_factory=list)  # operations that the server refused, with the reasons

    @classmethod
    def load(cls, spool: Spool, uri: str) -> "Sent":
        """Reads how far the spool was replayed to this server."""
        code = hashlib.sha256(without_password(uri).encode()).hexdigest()[:8]
        sent = cls(spool.path.with_suffix(f".{code}.sent"))
        if sent.path.exists():
            for line in sent.path.read_text(errors="replace").splitlines(keepends=True):
                if line.endswith("\n"):
                    with contextlib.suppress(Malformed):  # without this file, operations are sent again, which is safe
                        sent._take(parse_json(line, SentEntry))
        return sent

    def mark(self, offset: int, **learned: Any) -> None:
        """Records that everything before `offset` is done, with new `ids` and an operation that was `rejected`."""
        entry = {"offset": offset, **learned}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        self.offset = entry["offset"]
        self.ids.update(entry.get("ids", {}))
        if "retried" in entry:
            self.rejected = entry["retried"]
        if "rejected" in entry:
            self.rejected.append(entry["rejected"])


def remove(spool: Spool) -> None:
    """Deletes a spool that is wholly sent; the server knows the ids."""
    for path in spool.path.parent.glob(f"{spool.path.stem}.*"):
        if path != spool.path:
            path.unlink(missing_ok=True)
    spool.path.unlink(missing_ok=True)
