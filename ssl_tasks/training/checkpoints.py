"""Checkpoints on disk, whole or absent; and the request to stop, which SIGTERM and SIGINT make.

`step-0000000200.<sha256>.safetensors` is one file that any reader of safetensors opens, named by the digest of its
bytes, so a cut or a flipped bit is noticed. It is written under another name, flushed and renamed; the one before is
kept. No pickle. The training loop looks at the request between two steps, saves a checkpoint and stops.
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
    """The signal that asked the training to stop, if any."""

    received: signal.Signals | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listens during a training; a second signal acts as it would without us. Signals reach the main thread alone."""
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
    """A run's checkpoints in a folder, written by a thread during the training. Some ranks only read."""

    def __init__(self, folder: Path, every_seconds: float, writes: bool = True) -> None:
        self.folder, self.every, self.writes = folder, every_seconds, writes
        self.saved = time.monotonic()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.damaged: list[Path] = []

    def due(self) -> bool:
        """Whether so much time has passed that a checkpoint is worth its cost."""
        return self.writes and time.monotonic() - self.saved >= self.every

    def save(self, snapshot: Snapshot) -> None:
        """Writes in the background, after the write before has ended."""
        self.wait()
        while self.damaged:
            self.damaged.pop().unlink(missing_ok=True)
        self.pending = self.thread.submit(write_checkpoint, self.folder, snapshot)
        self.saved = time.monotonic()

    def wait(self) -> None:
        """Until what was saved is on disk; raises what went wrong there."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is whole."""
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
    """Oldest first."""
    return sorted(folder.glob(PATTERN))


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Writes a snapshot, flushes it, gives it its name, and drops what is older than the one before."""
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
    """The snapshot in a file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return Snapshot({name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["run"]))  # noqa: SIM118
