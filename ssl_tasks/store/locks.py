"""Locks between processes; the kernel frees each of them on any death.

`file_lock` is for the time of a block. `at_work` and `alone` are about a workspace: whoever works in it shares a lock
with others, and deletion needs exclusive use. `held_lock` is about a process: it locks a file for its whole life, so
that other hosts and containers learn that it is dead. (A container that is made anew has another host name, and its
process numbers mean nothing elsewhere.) A process lock is believed only where a lock that is held could be seen: both
sides are on the same kind of file system, and that is one that a single kernel mounts at a time, or one whose server
keeps the locks.
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

IN_USE, PROCESSES = "in_use", "processes"  # in the workspace: the lock of all who work in it, the locks of processes
OF_ONE_KERNEL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay"}
log = logging.getLogger("selftrain")
_held: dict[tuple[int, Path], str] = {}
_taking = threading.Lock()


def take(descriptor: int, shared: bool = False, blocking: bool = True) -> bool:
    """Locks an open file until it is closed; False where another process holds it and `blocking` is off."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def file_lock(path: Path, blocking: bool = True) -> Iterator[None]:
    """An exclusive lock on `path`; BlockingIOError where it is held and `blocking` is off."""
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
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # another user's: a local disk locks what can be read


@contextlib.contextmanager
def at_work(workspace: Path) -> Iterator[None]:
    """For as long as artifacts are computed or read: none of them is removed meanwhile."""
    try:
        # Reading suffices for a shared lock: others may have made the file.
        descriptor = os.open(workspace / IN_USE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:  # a workspace that we may only read
        yield
        return
    try:
        if not take(descriptor, shared=True, blocking=False):
            log.info("waiting until `selftrain clean` has removed what it offered")
            take(descriptor, shared=True)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(workspace: Path) -> Iterator[bool]:
    """Whether no process is at work in the workspace; while the block lasts, none begins."""
    if not workspace.is_dir():
        yield True
        return
    descriptor = os.open(workspace / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield take(descriptor, blocking=False)
    finally:
        os.close(descriptor)


def held_lock(workspace: Path) -> dict[str, str]:
    """The lock of this process, for its records; the first call takes it, the process's end frees it."""
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
    """Removes the files of this process's locks. For its end, which may come without Python's own clean-up."""
    for (pid, folder), name in _held.items():
        if pid == os.getpid():
            (folder / name).unlink(missing_ok=True)


def freed(info: Mapping[str, Any], workspace: Path) -> bool:
    """Whether the process of a record is dead for certain, whatever host it was on."""
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
    """The kind of file system of a folder; of NFS, whether its locks are the server's."""
    import psutil

    place = folder.resolve()
    mounts = [one for one in psutil.disk_partitions(all=True) if place.is_relative_to(one.mountpoint)]
    if not mounts:
        return ""
    mount = max(reversed(mounts), key=lambda one: len(one.mountpoint))  # of two in one place, the later covers
    shared = mount.fstype == "nfs4" and "local_lock=none" in mount.opts.split(",")
    return "nfs4, locked by its server" if shared else mount.fstype


def _believed(kind: str) -> bool:
    return kind in OF_ONE_KERNEL or kind == "nfs4, locked by its server"


def _taken(path: Path) -> bool:
    """Creates and locks the file; False where another process took it for a dead one's in between, and removed it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    take(descriptor)
    if _is_at(path, descriptor):
        return True  # and the file is never closed: that would free the lock
    os.close(descriptor)
    return False


def _remove_dead(folder: Path) -> None:
    """The files of killed processes; each is locked while it is removed, so that no process takes it meanwhile."""
    for path in folder.iterdir():
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # removed just now, or another user's
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
