"""The local spool: everything that has to reach MLflow is first a line in a file, and is replayed in order.

`<workspace>/tracking/spool/<name>.jsonl` belongs to one process and only grows; its first line says whose it is and
where it goes. `<name>.<server>.sent` says how far it was replayed to a server, and which MLflow ids our local ids
became; `<name>.closed` that nothing more will come; `<name>.lock` is held by whoever replays it.
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

from selftrain.ssl_tasks.store.json_file import Malformed, Shape, parse_json
from selftrain.ssl_tasks.store.locks import held_lock
from selftrain.ssl_tasks.store.runs import alive, owner

log = logging.getLogger("selftrain.tracking")
Operation = Mapping[str, Any]


def without_password(text: str) -> str:
    """An address alone, or a text whose addresses hold no credentials: what may stand in a file or in a message."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


def spool_folder(workspace: Path) -> Path:
    """Where the spools of a workspace are."""
    return workspace / "tracking" / "spool"


class Entry(Shape):
    """A line of a spool."""

    kind: str
    time: float


class Header(Entry):
    """The first line of a spool."""

    uri: str
    experiment: str
    host: str
    pid: int
    pid_started: float


class SentEntry(Shape):
    """A line of what is known of a spool and a server."""

    offset: int
    ids: dict[str, str] = Field(default_factory=dict)
    retried: list[dict[str, Any]] = Field(default_factory=list)
    rejected: dict[str, Any] = Field(default_factory=dict)


def spools(workspace: Path) -> list["Spool"]:
    """Every spool that is not wholly sent, oldest first; one whose first line was never whole holds nothing."""
    found = [Spool(path) for path in sorted(spool_folder(workspace).glob("*.jsonl"))]
    return [spool for spool in found if spool.begun]


def waiting_elsewhere(workspace: Path) -> list[str]:
    """A sentence for each spool that processes of other hosts are believed to add to."""
    others = [one for one in spools(workspace) if one.header["host"] != socket.gethostname() and not one.dead]
    return [
        f"{one.path} is left to its process on {one.header['host']}, which is believed to live; if that host is gone, "
        f"`touch {one.path.with_suffix('.closed')}` and sync again"
        for one in others
    ]


class Spool:
    """One file of operations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._torn = False

    @classmethod
    def create(cls, workspace: Path, uri: str, experiment: str) -> "Spool":
        """A new spool of this process."""
        folder = spool_folder(workspace)
        folder.mkdir(parents=True, exist_ok=True)
        spool = cls(folder / f"{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.jsonl")
        spool.append("header", uri=without_password(uri), experiment=experiment, **owner(), **held_lock(workspace))
        return spool

    def append(self, kind: str, **values: Any) -> None:
        """Adds an operation; once this returns, no death of a process loses it. A full disk loses it, and is logged:
        a run does not fail for its tracking."""
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
        """Whether its first line is whole."""
        try:
            return Header.model_validate(self.header).kind == "header"
        except (StopIteration, ValidationError):
            return False

    @property
    def header(self) -> dict[str, Any]:
        """Whose it is (host, pid, pid_started), the server's address, the experiment."""
        return dict(next(self.operations())[1])

    @property
    def dead(self) -> bool:
        """Whether no living process will add to it."""
        return self.path.with_suffix(".closed").exists() or not alive(self.header, self.path.parents[2])

    def close(self) -> None:
        """Nothing more will be added."""
        self.path.with_suffix(".closed").touch()

    def operations(self, offset: int = 0) -> Iterator[tuple[int, Operation]]:
        """Whole lines from a byte offset on, each with the offset behind it. What a kill or a full disk has torn is
        passed over."""
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                with contextlib.suppress(Malformed):
                    yield offset, parse_json(line, Entry)

    def open_runs(self) -> dict[str, float]:
        """Runs that were started here and not ended, with the time of the last operation."""
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
    """How far a spool was replayed to one server. Kept by appending, so that it is never torn in the middle."""

    path: Path
    offset: int = 0
    ids: dict[str, str] = field(default_factory=dict)  # local run → MLflow run
    rejected: list[dict[str, Any]] = field(default_factory=list)  # operations that the server refuses, and why

    @classmethod
    def load(cls, spool: Spool, uri: str) -> "Sent":
        """What is known of this spool and this server."""
        code = hashlib.sha256(without_password(uri).encode()).hexdigest()[:8]
        sent = cls(spool.path.with_suffix(f".{code}.sent"))
        if sent.path.exists():
            for line in sent.path.read_text(errors="replace").splitlines(keepends=True):
                if line.endswith("\n"):
                    with contextlib.suppress(Malformed):  # then operations may be sent again
                        sent._take(parse_json(line, SentEntry))
        return sent

    def mark(self, offset: int, **learned: Any) -> None:
        """Notes that everything before `offset` is done: `ids` that were learned, an operation that was `rejected`."""
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
    """Forgets a spool that is wholly sent: the server can be asked for the ids."""
    for path in spool.path.parent.glob(f"{spool.path.stem}.*"):
        if path != spool.path:
            path.unlink(missing_ok=True)
    spool.path.unlink(missing_ok=True)
