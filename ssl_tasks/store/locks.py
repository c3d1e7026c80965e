"""Provides locks between processes; the kernel frees them when a process dies.

`file_lock` holds a lock during a block. Processes that use a workspace share the lock of `at_work`; deletion needs
exclusive use (`alone`). `held_lock` locks a file for the whole life of a process, so that other hosts and containers
know when it has died. (A new container has another host name, and its process ids mean nothing elsewhere.) A free
process lock counts only if a held lock would be visible: both sides use the same kind of file system, and either one
kernel at a time mounts it, or its server keeps the locks.
"""

import atexit
import contextlib
import fcntl
import logging
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

IN_USE, PROCESSES = (
    "in_use",
    "processes",
)  # in the workspace: the lock of all processes at work in it, the locks of single processes
OF_ONE_KERNEL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay"}
log = logging.getLogger("selftrain")
_held: dict[tuple[int, Path], str] = {}
_taking = threading.Lock()


def take(descriptor: int, shared: bool = False, blocking: bool = True) -> bool:
    """Locks an open file until it is closed; returns False if another process holds it and `blocking` is off."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def file_lock(path: Path, blocking: bool = True) -> Iterator[None]:
    """Holds an exclusive lock on `path` within the block; BlockingIOError if it is held and `blocking` is off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_lock(path)
    try:
        if not take(descriptor, blocking=blocking):
            raise BlockingIOError(f"{path} is locked by another process")
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(
            path, os.O_RDONLY | os.O_CLOEXEC
        )  # another user's file: on a local disk, read permission is enough for a lock


@contextlib.contextmanager
def at_work(workspace: Path) -> Iterator[None]:
    """Holds the shared lock while artifacts are computed or read, so that none is deleted."""
    try:
        # Read permission is enough for a shared lock; another user may own the file.
        descriptor = os.open(workspace / IN_USE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:  # a workspace that we may only read
        yield
        return
    try:
        if not take(descriptor, shared=True, blocking=False):
            log.info("waiting until `selftrain clean` has finished")
            take(descriptor, shared=True)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(workspace: Path) -> Iterator[bool]:
    """Yields whether no process is at work in the workspace; during the block, none can start."""
    if not workspace.is_dir():
        yield True
        return
    descriptor = os.open(workspace / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield take(descriptor, blocking=False)
    finally:
        os.close(descriptor)


def held_lock(workspace: Path) -> dict[str, str]:
    """Returns the name of this process's lock for its records; the first call takes the lock."""
    folder = workspace.absolute() / PROCESSES
    with _taking:
        name = _held.setdefault((os.getpid(), folder), uuid.uuid4().hex[:12])
        if not (path := folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            while not _taken(path):
                continue
            atexit.register(release)
            if _believed(file_system(folder)):
                _remove_dead(folder)
    return {"lock": name, "locks_on": file_system(folder)}


def release() -> None:
    """Deletes the files of this process's locks, for an end without Python's own clean-up."""
    for (pid, folder), name in _held.items():
        if pid == os.getpid():
            (folder / name).unlink(missing_ok=True)


def freed(info: Mapping[str, Any], workspace: Path) -> bool:
    """Returns whether the process of a record is certainly dead, on whatever host it was."""
    folder = workspace.absolute() / PROCESSES
    if "lock" not in info or info.get("locks_on") != file_system(folder) or not _believed(info["locks_on"]):
        return False
    try:
        descriptor = os.open(folder / info["lock"], os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the process removed it when it ended
        return True
    try:
        return take(descriptor, shared=True, blocking=False)
    finally:
        os.close(descriptor)


def file_system(folder: Path) -> str:
    """Returns the kind of a folder's file system, and for NFS whether the server keeps the locks."""
    import psutil

    place = folder.resolve()
    mounts = [one for one in psutil.disk_partitions(all=True) if place.is_relative_to(one.mountpoint)]
    if not mounts:
        return ""
    mount = max(
        reversed(mounts), key=lambda one: len(one.mountpoint)
    )  # of two mounts in one place, the later hides the earlier
    shared = mount.fstype == "nfs4" and "local_lock=none" in mount.opts.split(",")
    return "nfs4, locked by its server" if shared else mount.fstype


def _believed(kind: str) -> bool:
    return kind in OF_ONE_KERNEL or kind == "nfs4, locked by its server"


def _taken(path: Path) -> bool:
    """Creates and locks the file; False if another process took it for a dead one's in between and deleted it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    take(descriptor)
    if _is_at(path, descriptor):
        return True  # the file is never closed, because that would free the lock
    os.close(descriptor)
    return False


def _remove_dead(folder: Path) -> None:
    """Deletes the files of killed processes; each is locked meanwhile, so that no process takes it."""
    for path in folder.iterdir():
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # just deleted, or owned by another user
            continue
        try:
            if take(descriptor, blocking=False) and _is_at(path, descriptor):  # else its process lives
                path.unlink(missing_ok=True)
        except OSError:  # the file is another user's
            continue
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
