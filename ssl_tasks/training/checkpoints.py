"""Writes and reads checkpoints, and turns SIGTERM and SIGINT into a request to stop.

`step-0000000200.<sha256>.safetensors` is one file that any reader of safetensors opens, named by the digest of its
bytes, so damage is noticed. It is written under another name, flushed and renamed, so it is complete or absent. The
previous one is kept. The training loop checks the request between two steps, saves a checkpoint and stops.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from selftrain.ssl_tasks.store.artifacts import digest_file, flush_folder
from selftrain.ssl_tasks.training.state import Snapshot

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A request to stop: the signal that asked for it, if any."""

    received: signal.Signals | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listens for signals within the block; a second signal has its usual effect. Only the main thread gets signals."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        request.received = signal.Signals(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


KEPT = 2
PATTERN = "step-*.safetensors"
TEMPORARY = "unfinished.tmp"
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a training in a folder, written by a thread. Only one rank writes; the others read."""

    def __init__(self, folder: Path, every_seconds: float, writes: bool = True) -> None:
        self.folder, self.every, self.writes = folder, every_seconds, writes
        self.saved = time.monotonic()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.damaged: list[Path] = []

    def due(self) -> bool:
        """Returns whether enough time has passed for another checkpoint."""
        return self.writes and time.monotonic() - self.saved >= self.every

    def save(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint in the background, after the previous write has ended."""
        self.wait()
        while self.damaged:
            self.damaged.pop().unlink(missing_ok=True)
        self.pending = self.thread.submit(write_checkpoint, self.folder, snapshot)
        self.saved = time.monotonic()

    def wait(self) -> None:
        """Waits until the checkpoint is on disk; raises the error if writing failed."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def newest(self) -> Snapshot | None:
        """Returns the newest undamaged checkpoint."""
        for path in reversed(checkpoint_files(self.folder)):
            if digest_file(path) == path.name.split(".")[1]:
                return read_checkpoint(path)
            self.damaged.append(path)
            log.warning("checkpoint %s is damaged: its contents differ from its digest. Using the previous one.", path)
        return None

    def describe(self) -> str:
        """Describes the last good checkpoint, for a message."""
        files = checkpoint_files(self.folder)
        return f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"


def checkpoint_files(folder: Path) -> list[Path]:
    """Returns the files of a folder's checkpoints, the oldest first."""
    return sorted(folder.glob(PATTERN))


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Writes a snapshot, flushes it, renames it, and deletes all but this checkpoint and the previous one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / TEMPORARY
    save_file(snapshot.tensors, temporary, metadata={"run": json.dumps(snapshot.values)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, folder / f"step-{snapshot.values['step']:010d}.{digest_file(temporary)}.safetensors")
    flush_folder(folder)
    for old in checkpoint_files(folder)[:-KEPT]:
        old.unlink()


def read_checkpoint(path: Path) -> Snapshot:
    """Reads the snapshot in a file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return Snapshot({name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["run"]))  # noqa: SIM118
