"""Reads class folders of images, with the unlabelled images in a folder or a list of their own."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from selftrain.ssl_tasks.data.sources.base import SUFFIXES, ImageSource, Listing, Places, below, existing
from selftrain.ssl_tasks.data.splits import lookalikes, sort_classes
from selftrain.ssl_tasks.errors import DataError, brief, one_line
from selftrain.ssl_tasks.reading import read_regular
from selftrain.ssl_tasks.settings.data import FolderSource
from selftrain.ssl_tasks.store.file_digests import FileDigests

HELD_OUT = ("validation", "test")
ROLES = {  # usual names of folders that hold a split, not a class
    "unlabeled": ("unlabeled", "unlabelled", "unsupervised", "extra"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
LONGEST_REASON = 500  # letters; one names a folder
MOST_LINKS = 3  # links on the way to an image: folders that link to each other would have endlessly many paths
NOT_CLASSES = frozenset({"unlabeled", *HELD_OUT, "__MACOSX"})


@dataclass
class Rows:
    """The growing columns of a listing."""

    ids: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)

    def add(self, id: str, label: str | None, split: str | None, uri: str, error: str | None = None) -> None:
        """Adds one sample. A name that is not text is replaced by one that is, and the sample is not read."""
        if not uri.isprintable() and uri != (text := as_text(uri)):
            id, uri = as_text(id), text
            error = "the file's name is not UTF-8; rename it"
        for column, value in zip(vars(self).values(), (id, label, split, uri, error), strict=True):
            column.append(value)


class Notes(Counter[str]):
    """Counts ignored entries by reason, with the names of those that the user may expect."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, list[str]] = {}

    def hidden(self, entry: os.DirEntry[str]) -> None:
        """Notes an entry whose name begins with a dot. macOS adds a `._` file to each file; it is not an image."""
        image = entry.name.lower().endswith(tuple(SUFFIXES)) and not entry.name.startswith("._")
        if image or is_folder(entry):
            reason = "hidden, because the name begins with a dot"
            self.names.setdefault(reason, []).append(as_text("/".join(Path(entry.path).parts[-2:])))
        else:
            reason = "hidden files that are not images"
        self[reason] += 1

    def lines(self) -> tuple[str, ...]:
        """Returns a sentence for each reason."""
        return tuple(
            f"{count} {'entry' if count == 1 else 'entries'} ignored: {one_line(why, LONGEST_REASON)}"
            + (f": {brief(sorted(self.names[why]))}" if why in self.names else "")
            for why, count in sorted(self.items())
        )


class Folder(ImageSource):
    """A folder with `<class>/…`, `unlabeled/…`, `validation/<class>/…` and `test/<class>/…`."""

    def __init__(self, settings: FolderSource) -> None:
        self.settings = settings

    def __reduce__(self) -> tuple[type["Folder"], tuple[FolderSource]]:
        return type(self), (self.settings,)

    @cached_property
    def _places(self) -> Places:
        path = existing(self.settings.path, "the image folder")
        if not path.is_dir():
            raise DataError(
                f"the image folder {path} is a file; expected a folder with one subfolder of images per class"
            )
        roots = {"images": path}
        for name in ("unlabeled", *HELD_OUT):
            asked: Path | None = getattr(self.settings, name)
            if asked is not None:
                roots[name] = existing(asked, f"the {name} images' place")
                if name in HELD_OUT and not asked.is_dir():
                    raise DataError(
                        f"the {name} images' place {asked} is a file; expected a folder with one subfolder "
                        "of images per class"
                    )
            elif (path / name).is_dir():
                roots[name] = path / name
                self._refuse_links(path, [name])
        return Places(roots, self.settings.max_file_mb)

    def _refuse_links(self, folder: Path, names: Iterable[str]) -> None:
        """Raises DataError if a class's folder is a link and links are not allowed."""
        root = os.path.realpath(self.settings.path)
        inside = (root, os.path.realpath(folder))
        for name in names:
            if not self.settings.follow_links and leaves(target := os.path.realpath(folder / name), inside):
                raise DataError(
                    f"{folder / name} is a link to {target}, outside the image folder; expected a folder inside it. "
                    "To follow such links, set data.source.follow_links to true (selftrain init DIR --follow-links)"
                )

    @cached_property
    def _inside(self) -> tuple[str, ...] | None:
        """Returns the folders that links may lead to; None for any."""
        return None if self.settings.follow_links else tuple(map(os.path.realpath, self._places.roots.values()))

    @cached_property
    def _reading(self) -> Places:
        """Returns the folders that uris start from; a list's paths start from the list's folder."""
        roots = self._places.roots
        places = {name: root if root.is_dir() else root.parent for name, root in roots.items()}
        return Places(places, self.settings.max_file_mb)

    @cached_property
    def _listing(self) -> Listing:
        rows, notes, roots = Rows(), Notes(), self._places.roots
        classes = self._class_folders()
        for label in classes:
            for name in image_files(roots["images"] / label, notes, self._inside):
                rows.add(f"{label}/{name}", label, None, f"images:{label}/{name}")
        if "unlabeled" in roots:
            self._add_unlabeled(rows, roots["unlabeled"], notes)
        for split in HELD_OUT:
            labels = sort_classes(subfolders(roots[split])) if split in roots else ()
            self._refuse_links(roots.get(split, Path()), labels)
            for label in labels:
                for name in image_files(roots[split] / label, notes, self._inside):
                    rows.add(f"{split}/{label}/{name}", label, split, f"{split}:{label}/{name}")
        if strays := self._strays(notes):
            notes["images in no class folder"] = strays
        return Listing.of(**vars(rows), classes=classes, notes=(*notes.lines(), *lookalikes(classes)))

    @property
    def notes(self) -> tuple[str, ...]:
        return self._listing.notes

    def _class_folders(self) -> tuple[str, ...]:
        path, roots = self._places.roots["images"], self._places.roots
        special = {root.resolve() for name, root in roots.items() if name != "images"}
        names = [
            name for name in subfolders(path) if name not in NOT_CLASSES and (path / name).resolve() not in special
        ]
        train = next((name for name in names if name.lower() == "train"), None)
        if train is not None and subfolders(path / train):
            raise DataError(
                f"{path} holds a folder '{train}' with folders in it; expected class folders. "
                f"Set data.source.path to '{path / train}', and data.source.test to the test folder if there is one"
            )
        if not names:
            raise DataError(
                f"{path} has no class folders; expected one folder of images per class, such as {path}/cat/"
            )
        self._refuse_links(path, names)
        return sort_classes(names)

    def _add_unlabeled(self, rows: Rows, place: Path, notes: Notes) -> None:
        if place.is_dir():
            for name in image_files(place, notes, self._inside):
                rows.add(f"unlabeled/{name}", None, "unlabeled", f"unlabeled:{name}")
            return
        try:
            lines = read_regular(place, self._places.most_bytes).decode("utf-8-sig").splitlines()
        except OSError as error:
            raise DataError(
                f"{place} cannot be read ({error.strerror or error}); expected a file with one path a line"
            ) from error
        except UnicodeDecodeError as broken:
            raise DataError(f"{place} is not UTF-8 text ({broken}); expected one path a line") from broken
        for line in lines:
            if line.strip():
                name, problem = below(place.parent, line)
                rows.add(f"unlabeled/{name}", None, "unlabeled", f"unlabeled:{name}", problem)

    def _strays(self, notes: Notes) -> int:
        """Counts the image files beside the class folders, which are not read; hidden entries are noted."""
        roots, unlabeled = self._places.roots, self._reading.roots.get("unlabeled")
        places = [roots[name] for name in ("images", *HELD_OUT) if name in roots]
        for place in places:
            for entry in os.scandir(place):
                if entry.name.startswith("."):
                    notes.hidden(entry)
        return sum(
            is_image(entry)
            for place in places
            if unlabeled is None or not place.resolve().is_relative_to(unlabeled.resolve())  # else they may be listed
            for entry in entries(place)
        )

    def check(self) -> None:
        self._class_folders()

    def listing(self) -> Listing:
        return self._listing

    def read(self, uri: str) -> bytes:
        return self._reading.read(uri)

    def file_keys(self, listing: Listing, files: FileDigests) -> list[bytes | None]:
        return self._reading.digests(listing.uris.to_pylist(), listing.errors.to_pylist(), files)

    def fingerprint(self, files: FileDigests) -> str:
        listing = self._listing
        digest = sha256(repr(listing.classes).encode())
        keys = self.file_keys(listing, files)
        for id, key in zip(listing.ids.to_pylist(), keys, strict=True):
            digest.update(f"{id!r} {key.hex() if key else None}\n".encode())
        return digest.hexdigest()


def subfolders(path: Path) -> list[str]:
    """Returns the sorted names of the folders in a folder, including links to folders."""
    names = sorted(entry.name for entry in entries(path) if is_folder(entry) and not entry.name.startswith("."))
    for name in names:
        if (text := as_text(name)) != name:
            raise DataError(f"the folder {path / text} has a name that is not UTF-8; rename it")
    return names


def as_text(name: str) -> str:
    """Returns a file's name as text, with bytes that are not UTF-8 as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def image_files(root: Path, notes: Notes, inside: tuple[str, ...] | None = None) -> list[str]:
    """Returns every image file below a folder, by suffix, as a sorted list of paths below it.

    Links to folders outside `inside` are not followed.
    """
    found: list[str] = []
    outside: list[str] = []
    real = os.path.realpath(root)
    waiting = [_Folder("", real, frozenset({real}))]
    while waiting:
        folder = waiting.pop()
        for entry in entries(root / folder.prefix):
            if entry.name.startswith("."):
                notes.hidden(entry)
                continue
            if entry.name == "__MACOSX":
                continue
            if not is_folder(entry):
                if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    found.append(folder.prefix + entry.name)
                else:
                    notes[f"not images by their suffix '{os.path.splitext(entry.name)[1]}'"] += 1
                continue
            inner = folder.enter(entry)
            if inner.real in folder.above or folder.real.startswith(inner.real.rstrip("/") + "/"):
                notes["links that lead in a circle"] += 1
            elif inner.links > folder.links and inside is not None and leaves(inner.real, inside):
                outside.append(inner.prefix.rstrip("/"))
            elif inner.links > MOST_LINKS:
                notes[f"links to folders below {MOST_LINKS} other links"] += 1
            else:
                waiting.append(inner)
    if outside:
        first = as_text(os.path.join(root, min(outside)))
        remedy = "to follow them, set data.source.follow_links, or name the folder that they lead to"
        notes[f"links to folders outside the image folder, such as {first}; {remedy}"] += len(outside)
    return sorted(found)


@dataclass(frozen=True)
class _Folder:
    """A folder of the walk: its path, its real path, the real folders above it and the links among them."""

    prefix: str
    real: str
    above: frozenset[str]
    links: int = 0

    def enter(self, entry: os.DirEntry[str]) -> "_Folder":
        """Returns a folder in this folder."""
        link = entry.is_symlink()
        real = os.path.realpath(entry.path) if link else os.path.join(self.real, entry.name)
        return _Folder(f"{self.prefix}{entry.name}/", real, self.above | {real}, self.links + link)


def leaves(real: str, inside: Iterable[str]) -> bool:
    """Returns whether a real path is in none of these folders."""
    return not any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in inside)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder; raises DataError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise DataError(
            f"the folder {as_text(str(folder))} cannot be read ({error.strerror}); expected one that may be read. "
            "Change its permissions, or move it"
        ) from error


def is_image(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is an image file by its suffix, and not hidden."""
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in SUFFIXES and not entry.name.startswith(".") and not is_folder(entry)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
