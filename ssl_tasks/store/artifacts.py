"""Stores artifacts: folders that are written once, under the key of their stage. It is the pipeline's only cache."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, field_validator

from selftrain.ssl_tasks.errors import DamagedArtifact
from selftrain.ssl_tasks.reading import Malformed, Shape, open_regular, read_json
from selftrain.ssl_tasks.store.locks import file_lock

MANIFEST = "artifact.json"
REMEDY = "run its recipe again: damaged artifacts are recomputed, and the old files are moved to store/quarantine"
log = logging.getLogger("selftrain")
CHUNK = 1 << 20


def digest_json(value: Any) -> str:
    """Returns the sha256 of a JSON value, written in a canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Returns the sha256 of a file."""
    file, _ = open_regular(path)
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_key(stage: str, version: int, section: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Returns a stage's key: the hash of its name, version, settings and inputs, never of paths, times or run ids."""
    return digest_json({"stage": stage, "version": version, "section": section, "inputs": inputs})


@dataclass(frozen=True)
class Artifact:
    """A committed folder. `digest` identifies its contents; `parts` identify parts that a stage can depend on alone."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    @property
    def parts(self) -> Mapping[str, str]:
        """Returns the digests of parts of the contents, by their names (labeled, unlabeled, …)."""
        return self.manifest.get("parts", {})

    @property
    def summary(self) -> Mapping[str, Any]:
        """Returns the summary of the stage: small JSON values for tables and logs."""
        return self.manifest.get("summary", {})

    def file(self, name: str) -> Path:
        """Returns the path of one of the artifact's files."""
        return self.path / name


class Store:
    """The folder `<workspace>/store`: `<stage>/<key>/` are artifacts, `attempts/<stage>-<key>/` work in progress."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def path(self, stage: str, key: str) -> Path:
        """Returns the folder of an artifact, whether it exists or not."""
        return self.root / stage / key

    def attempt(self, stage: str, key: str) -> Path:
        """Returns the folder of an attempt: `output/` becomes the artifact; `scratch/` (checkpoints, shards) survives a
        kill."""
        return self.root / "attempts" / f"{stage}-{key}"

    @contextlib.contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Locks a key on this host; the kernel frees the lock when the process dies."""
        with file_lock(self.root / "locks" / f"{stage}-{key}"):
            yield

    def find(self, stage: str, key: str, verify: bool = True) -> Artifact | None:
        """Returns the artifact of a key, or None. Sizes are always checked; with `verify`, the digest of every file as
        well."""
        artifact = self.unchecked(stage, key)
        if artifact is not None:
            check_contents(artifact)
            check_files(artifact, verify)
        return artifact

    def unchecked(self, stage: str, key: str) -> Artifact | None:
        """Returns the artifact as its manifest describes it, without checking its files."""
        path = self.path(stage, key)
        try:
            artifact = Artifact(path, read_manifest(path))
        except FileNotFoundError:
            if path.is_dir():
                raise DamagedArtifact(f"{path / MANIFEST} is missing; {REMEDY}") from None
            return None
        except NotADirectoryError:
            return None
        if (artifact.stage, artifact.key) != (stage, key):
            raise DamagedArtifact(
                f"{path / MANIFEST} belongs to another artifact: {artifact.stage} {artifact.key}; {REMEDY}"
            )
        return artifact

    def commit(self, stage: str, key: str, manifest: Mapping[str, Any]) -> Artifact:
        """Turns an attempt's output into the artifact: it computes digests, flushes to disk, and renames the folder."""
        output = self.attempt(stage, key) / "output"
        files = {
            str(path.relative_to(output)): {"sha256": digest_file(path), "bytes": path.stat().st_size}
            for path in sorted(output.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        whole = {**manifest, "stage": stage, "key": key, "digest": contents_digest(files), "files": files}
        (output / MANIFEST).write_text(json.dumps(whole, indent=1, sort_keys=True, default=str) + "\n")
        flush_tree(output)
        final = self.path(stage, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(output, final)
        flush_folder(final.parent)
        shutil.rmtree(self.attempt(stage, key), ignore_errors=True)
        return Artifact(final, whole)

    def quarantine(self, stage: str, key: str) -> Path | None:
        """Moves an artifact that is damaged, or is to be recomputed, into the quarantine; it is not deleted."""
        path = self.path(stage, key)
        if not path.exists():
            return None
        aside = self.root / "quarantine" / f"{stage}-{key}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, aside)
        return aside

    def artifacts(self) -> Iterator[Artifact]:
        """Yields every artifact, unverified and in any order. Damaged manifests are skipped and logged."""
        for folder in self.folders():
            try:
                yield Artifact(folder, read_manifest(folder))
            except DamagedArtifact as error:
                log.warning("%s", error)

    def folders(self) -> Iterator[Path]:
        """Yields the folder of every artifact, even of one with a damaged manifest."""
        for path in self.root.glob(f"*/*/{MANIFEST}"):
            if path.parent.parent.name not in {"attempts", "quarantine"}:
                yield path.parent


class _File(Shape):
    sha256: str
    bytes: int


class _Input(Shape):
    stage: str
    key: str
    digest: str


class ManifestShape(Shape):
    """The entries that every manifest has."""

    stage: str
    key: str
    digest: str
    files: dict[str, _File]
    inputs: dict[str, _Input]
    settings: dict[str, Any]
    seconds: float
    finished: float
    parts: dict[str, str] = Field(default_factory=dict)
    summary: dict[str, Any] = Field(default_factory=dict)
    key_parts: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _names_lead_inside(cls, files: dict[str, _File]) -> dict[str, _File]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise ValueError(f"the file name {name!r} leads out of the artifact")
        return files


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """Reads and checks the manifest of an artifact's folder."""
    try:
        return read_json(folder / MANIFEST, ManifestShape)
    except Malformed as error:
        raise DamagedArtifact(f"{folder / MANIFEST} is damaged ({error}); {REMEDY}") from error


def contents_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the digest of an artifact's contents: of the names and digests of its files."""
    # Files under logs/ hold times and machine names. They are stored and checked, but are not part of the digest.
    return digest_json({name: entry["sha256"] for name, entry in files.items() if not name.startswith("logs/")})


def check_contents(artifact: Artifact) -> None:
    """Raises DamagedArtifact if the files in a manifest do not match its digest."""
    if contents_digest(artifact.manifest["files"]) != artifact.digest:
        raise DamagedArtifact(f"{artifact.file(MANIFEST)} does not match its digest: it was changed")


def check_files(artifact: Artifact, digests: bool = True) -> None:
    """Raises DamagedArtifact if a file is missing, has another size or (with `digests`) other contents."""
    for name, entry in artifact.manifest["files"].items():
        path = artifact.path / name
        if not path.is_file():
            raise DamagedArtifact(f"{path} is missing")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise DamagedArtifact(f"{path} has {size} bytes, expected {entry['bytes']}")
        if digests and digest_file(path) != entry["sha256"]:
            raise DamagedArtifact(f"{path} has changed since it was written")


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file such that a reader sees the old or the new contents in full, even after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_tree(root: Path) -> None:
    """Flushes every file and folder below `root` to disk."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [*(path for path in root.rglob("*") if path.is_dir()), root]:
        flush_folder(path)


def flush_folder(path: Path) -> None:
    """Flushes a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verified(artifact: Artifact) -> Artifact:
    """Returns the artifact if each file has its digest; DamagedArtifact names the file that has not, and the remedy.

    Each file is read once: its digest is remembered in the workspace's cache by inode, size and times, for other
    processes too. `selftrain lineage --verify` and the reuse of an artifact read every file again.
    """
    from selftrain.ssl_tasks.store.file_digests import FileDigests  # pyarrow is not imported before it is needed

    files = artifact.manifest["files"]
    try:
        check_contents(artifact)
        check_files(artifact, digests=False)
        cache = artifact.path.parents[2] / "cache"  # <workspace>/store/<stage>/<key>
        digests = FileDigests(cache).of(artifact.path, list(files))
        for (name, entry), digest in zip(files.items(), digests, strict=True):
            if digest is None or digest.hex() != entry["sha256"]:
                raise DamagedArtifact(f"{artifact.file(name)} has changed since it was written")
    except DamagedArtifact as error:
        raise DamagedArtifact(f"{error}; {REMEDY}") from error
    return artifact
