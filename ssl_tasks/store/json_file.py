"""Reads JSON that this package wrote, and that a person or a disk may have changed since: its shape is checked."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from selftrain.ssl_tasks.regular_file import read_regular

MOST_BYTES = 64_000_000


class Shape(BaseModel):
    """Base of the required entries of a JSON object; other entries are allowed."""

    model_config = ConfigDict(extra="allow", strict=True)


class Malformed(ValueError):
    """A file that is not the JSON that was expected; the message says in what it differs."""


def read_json(path: Path, shape: type[BaseModel] = Shape, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The object of a JSON file; Malformed where it has another shape, FileNotFoundError where it is not there."""
    try:
        text = read_regular(path, most_bytes)
    except OSError as error:
        if error.errno is not None:
            raise
        raise Malformed(str(error)) from error
    return parse_json(text, shape)


def parse_json(text: str | bytes, shape: type[BaseModel] = Shape) -> dict[str, Any]:
    """The object that a JSON text stands for; Malformed where it has another shape."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError is also: not UTF-8, a number of 5,000 digits
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
