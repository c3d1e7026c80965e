"""Reads JSON files of this package and checks their shape, because they may have been changed or damaged."""

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
