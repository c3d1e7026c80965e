"""Folders that queries spill to: removed at the end of the query, and after a kill by the next query of this user.

All of a user's lie in one folder, `selftrain-spill-<user>-<host>` of the folder for temporary files. Each has a file
that its process keeps locked; the kernel frees the lock when the process ends, however it ends.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from selftrain.ssl_tasks.errors import Interrupted
from selftrain.ssl_tasks.store.locks import file_lock, take

LOCK = "in-use.lock"
STARTING = "starting.lock"


@contextlib.contextmanager
def spill_folder() -> Iterator[Path]:
    """An empty folder for this process. Folders that dead processes left are removed first."""
    with _ending_in_order():
        folder, lock = _made()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _made() -> tuple[Path, int]:
    """A new folder and the descriptor of its lock."""
    root = Path(tempfile.gettempdir()) / f"selftrain-spill-{os.getuid()}-{socket.gethostname()}"
    if not _own(root):  # another user made it first: use a folder that only this process knows
        folder = Path(tempfile.mkdtemp(prefix="selftrain-spill-"))
        return folder, _locked(folder)
    with file_lock(root / STARTING):  # between making a folder and locking it, it would look abandoned
        _remove_abandoned(root)
        folder = Path(tempfile.mkdtemp(dir=root))
        return folder, _locked(folder)


def _own(root: Path) -> bool:
    """Makes the folder, and says whether it is a folder of this user that no other user can write to."""
    with contextlib.suppress(FileExistsError):
        root.mkdir(0o700)
    found = root.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _locked(folder: Path) -> int:
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    held = take(descriptor, blocking=False)
    assert held, "no other process knows this new folder"
    return descriptor


def _remove_abandoned(root: Path) -> None:
    for folder in root.iterdir():
        if folder.is_dir() and not folder.is_symlink():
            with contextlib.suppress(BlockingIOError), file_lock(folder / LOCK, blocking=False):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP, where they would end the process at once, let it remove its folder first."""

    def end(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"ended by {signal.Signals(number).name}; nothing was changed")

    numbers = (signal.SIGTERM, signal.SIGHUP)
    main = threading.current_thread() is threading.main_thread()
    changed = [one for one in numbers if main and signal.getsignal(one) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
