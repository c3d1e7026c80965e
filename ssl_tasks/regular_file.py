"""Reads files that others made: only regular files, without blocking, up to a number of bytes."""

import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path, most_bytes: int | None = None) -> tuple[BufferedReader, int]:
    """Opens a file and returns it with its size; raises OSError for a pipe, a device, a folder or a file that is too
    large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a pipe would block
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        if most_bytes is not None and found.st_size > most_bytes:
            raise OSError(f"the file has {found.st_size:,} bytes, more than the {most_bytes:,} that are read")
        return open(descriptor, "rb"), found.st_size
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Returns the bytes that a file had when it was opened: it may grow, and files of /proc have no size."""
    file, size = open_regular(path, most_bytes)
    with file:
        return file.read(size)
