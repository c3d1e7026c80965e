"""Who works in a workspace holds a lock on it with others; who deletes what nobody names there must be alone.

The kernel frees the lock on any death.
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
    """For as long as artifacts are computed or read: none of them is removed meanwhile."""
    try:
        # Reading suffices for a shared lock: others may have made the file.
        descriptor = os.open(workspace / FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:  # a workspace that we may only read: who cannot write here is not kept from looking
        yield
        return
    try:
        if not _locked(descriptor, fcntl.LOCK_SH):
            log.info("waiting until `selftrain clean` has removed what it offered")
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def alone(workspace: Path) -> Iterator[bool]:
    """Whether nobody is at work in the workspace; while this lasts, nobody begins."""
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
