"""A file that a process keeps locked while it lives, so that other hosts and containers know when it has died.

A new container has another host name, and its process ids mean nothing elsewhere, but the kernel frees a process's
lock. A free lock counts only if a held lock would be visible: both sides use the same kind of file system, and either
one kernel at a time mounts it, or its server keeps the locks.
"""

import atexit
import fcntl
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

FOLDER = "processes"
OF_ONE_KERNEL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay"}
_held: dict[tuple[int, Path], str] = {}
_taking = threading.Lock()


def held_lock(workspace: Path) -> dict[str, str]:
    """Returns the name of this process's lock for its records; the first call takes the lock."""
    folder = workspace.absolute() / FOLDER
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
    folder = workspace.absolute() / FOLDER
    if "lock" not in info or info.get("locks_on") != file_system(folder) or not _believed(info["locks_on"]):
        return False
    try:
        descriptor = os.open(folder / info["lock"], os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the process removed it when it ended
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def file_system(folder: Path) -> str:
    """Returns the kind of a folder's file system, and for NFS whether the server keeps the locks."""
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
    fcntl.flock(descriptor, fcntl.LOCK_EX)
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
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                path.unlink(missing_ok=True)
        except OSError:  # its process lives, or another user owns the file
            continue
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
