"""Reads files that others made or may have changed: regular files only, of limited size; JSON of a known shape."""

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


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


MOST_BYTES = 64_000_000


class Shape(BaseModel):
    """Base of the required entries of a JSON object; other entries are allowed."""

    model_config = ConfigDict(extra="allow", strict=True)


class Malformed(ValueError):
    """Raised for a file that does not hold the expected JSON; the message says how it differs."""


def read_json(path: Path, shape: type[BaseModel] = Shape, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Returns the object of a JSON file; raises Malformed for another shape, FileNotFoundError for a missing file."""
    try:
        text = read_regular(path, most_bytes)
    except OSError as error:
        if error.errno is not None:
            raise
        raise Malformed(str(error)) from error
    return parse_json(text, shape)


def parse_json(text: str | bytes, shape: type[BaseModel] = Shape) -> dict[str, Any]:
    """Returns the object of a JSON text; raises Malformed for another shape."""
    try:
        found = json.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError includes text that is not UTF-8 and numbers of 5,000 digits
        raise Malformed(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Malformed(f"found {type(found).__name__}, expected an object")
    try:
        shape.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Malformed(f"entry '{where}': {first['msg']}") from error
    return found
