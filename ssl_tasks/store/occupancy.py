"""A shared lock for processes that use a workspace. Deletion needs exclusive use of the store.

The kernel frees the lock when a process dies.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("selftrain")
FILE = "in_use"


@contextmanager
def at_work(workspace: Path) -> Iterator[None]:
    """Holds the shared lock while artifacts are computed or read, so that none is deleted."""
    try:
        # Read permission is enough for a shared lock; another user may own the file.
        descriptor = os.open(workspace / FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:  # a read-only workspace can still be looked at
        yield
        return
    try:
        if not _locked(descriptor, fcntl.LOCK_SH):
            log.info("waiting until `selftrain clean` has finished")
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def alone(workspace: Path) -> Iterator[bool]:
    """Yields whether no other process uses the workspace; during the block, none can start."""
    if not workspace.is_dir():
        yield True
        return
    descriptor = os.open(workspace / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _locked(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
