"""Image files on disk: where they may lie, how they are read, and what a mistyped path may have meant."""

import difflib
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.regular_file import read_regular
from selftrain.ssl_tasks.store.file_digests import FileDigests

SUFFIXES = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".gif",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".jp2",
        ".tga",
    ]
)


@dataclass(frozen=True)
class Places:
    """Folders by a short name; an image's uri is `name:path below that folder`, the same wherever the folder lies."""

    roots: Mapping[str, Path]
    max_file_mb: int

    @property
    def most_bytes(self) -> int:
        """The size of the largest file that is read."""
        return self.max_file_mb * 1_000_000

    def read(self, uri: str) -> bytes:
        """The bytes of an image file."""
        place, _, name = uri.partition(":")
        path = self.roots[place] / name
        if not path.is_file():  # a folder, a pipe, a link to nowhere or in a circle
            raise FileNotFoundError(2, "no such file")
        return read_regular(path, self.most_bytes)

    def digests(self, uris: Sequence[str], errors: Sequence[str | None], files: FileDigests) -> list[bytes | None]:
        """The sha256 of each file; None where it cannot be read."""
        digests: list[bytes | None] = [None] * len(uris)
        by_place: dict[str, list[int]] = {}
        for at, (uri, error) in enumerate(zip(uris, errors, strict=True)):
            if error is None:
                by_place.setdefault(uri.partition(":")[0], []).append(at)
        for place, members in by_place.items():
            names = [uris[at].partition(":")[2] for at in members]
            for at, digest in zip(members, files.of(self.roots[place], names, self.most_bytes), strict=True):
                digests[at] = digest
        return digests


def below(root: Path, written: str) -> tuple[str, str | None]:
    """A path as a list or a table has it → the path below `root`, and why it may not be read."""
    name = written.strip().replace(os.sep, "/")
    if posixpath.isabs(name):
        absolute = posixpath.normpath(name)
        base = posixpath.normpath(root.absolute().as_posix()).rstrip("/") + "/"
        if not absolute.startswith(base):
            return name, "the path lies outside the root folder"
        return absolute[len(base) :], None
    normal = posixpath.normpath(name)
    if normal == ".." or normal.startswith("../"):
        return name, "the path lies outside the root folder"
    return normal, "no path" if normal == "." else None


def regular(path: Path, what: str, expected: str) -> Path:
    """The path, if it is a regular file; a pipe or a device might never end."""
    if existing(path, what).is_dir() or not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise DataError(f"{what} {path} is {kind}; expected {expected}")
    return path


def existing(path: Path, what: str) -> Path:
    """The path, if it is there; else a DataError with the nearest one that is."""
    if path.exists():
        return path
    parent = path.absolute()
    while not parent.is_dir():
        missing, parent = parent.name, parent.parent
    there = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(missing, there, n=1)
    hint = f" Did you mean '{parent / close[0]}'?" if close else ""
    shown = ", ".join(there[:10]) + (", …" if len(there) > 10 else "") if there else "nothing"
    raise DataError(f"{what} {path} does not exist.{hint} {parent} holds: {shown}.")
