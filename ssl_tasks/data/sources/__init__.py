"""Opens the source of images that the settings name, and computes the digest of its contents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from pydantic import TypeAdapter

from selftrain.ssl_tasks.data.sources.base import ImageSource
from selftrain.ssl_tasks.settings.data import (
    DataSettings,
    DigitsSource,
    FolderSource,
    Source,
    SyntheticSource,
    TableSource,
    TorchvisionSource,
)
from selftrain.ssl_tasks.store.artifacts import digest_json, write_atomically
from selftrain.ssl_tasks.store.file_digests import FileDigests


def open_source(settings: Source, cache: Path) -> ImageSource:
    """Opens the source that the settings name; `cache` is for unpacked files. Only the source's module is imported."""
    match settings:
        case DigitsSource():
            from selftrain.ssl_tasks.data.sources.named import Digits

            return Digits(settings)
        case FolderSource():
            from selftrain.ssl_tasks.data.sources.folder import Folder

            return Folder(settings)
        case TableSource():
            from selftrain.ssl_tasks.data.sources.table import Table

            return Table(settings, cache)
        case TorchvisionSource():
            from selftrain.ssl_tasks.data.sources.named import TorchvisionSet

            return TorchvisionSet(settings)
        case SyntheticSource():
            from selftrain.ssl_tasks.data.sources.named import Synthetic

            return Synthetic(settings)
        case _:
            assert_never(settings)


def fingerprint(settings: DataSettings, cache: Path, say: Callable[[str], None] | None = None) -> str:
    """Returns a digest of the source's contents, not of its place. It is cheap if nothing has changed.

    A moved folder has the same digest. The place is stored under `cache`, so that a data set that was built elsewhere
    finds its images here. `say` is called with each note on the source, such as ignored entries.
    """
    source = open_source(settings.source, cache)
    digest = digest_json([settings.source.name, source.fingerprint(FileDigests(cache))])
    if say is not None:
        for note in source.notes:
            say(note)
    place = _place(cache, settings.source, digest)
    text = settings.source.model_dump_json()
    if not place.is_file() or place.read_bytes() != text.encode():
        write_atomically(place, text)
    return digest


def last_place(source: Source, digest: str, cache: Path) -> Source:
    """Returns the source's settings with the last known paths of these contents."""
    place = _place(cache, source, digest)
    try:
        return TypeAdapter[Source](Source).validate_json(place.read_bytes())
    except (OSError, ValueError):  # not stored, or damaged
        return source


def _place(cache: Path, source: Source, digest: str) -> Path:
    return cache / "places" / f"{digest_json([source.identity(), digest])[:32]}.json"


def parse_source(settings: object) -> Source:
    """Builds a source's settings from the plain values of an artifact's manifest."""
    return TypeAdapter[Source](Source).validate_json(json.dumps(settings))
