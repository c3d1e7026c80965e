"""Shares artifacts between machines through object storage. Stages still read only the local store.

`<url>/objects/<sha256>` are files, each written once under its digest. `<url>/artifacts/<stage>/<key>.json` is an
artifact's manifest, which is written last, so its files always exist. Two machines that compute the same stage at the
same time leave one manifest and the files of both. The mirror never stops a run: an artifact that it cannot provide is
computed, and one that it cannot store is uploaded by the next run.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from selftrain.ssl_tasks.errors import ConfigError, DamagedArtifact
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import (
    MANIFEST,
    Artifact,
    ManifestShape,
    Store,
    check_contents,
    check_files,
    flush_folder,
    flush_tree,
)
from selftrain.ssl_tasks.store.json_file import parse_json

T = TypeVar("T")
TRIES, FIRST_PAUSE = 6, 0.2
AWAY_SECONDS = 60.0  # after repeated failures, the storage is not used for this long
OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    "s3": {"config_kwargs": {"connect_timeout": 5, "retries": {"max_attempts": 0}}},  # this module retries itself
}
_away_until: dict[str, float] = {}
log = logging.getLogger("selftrain")


class Unreachable(Exception):
    """Raised if the storage failed repeatedly."""


class Mirror:
    """The artifacts at one URL that fsspec supports: s3://, gs://, file://, …"""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            options = OPTIONS.get(fsspec.utils.get_protocol(url), {})
            self.filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            raise ConfigError(
                f"runtime.store: {url} needs a driver ({error}). Try: pip install 'selftrain[s3]'"
            ) from error
        except ValueError as error:
            raise ConfigError(f"runtime.store: {url}: {error}. Expected an address as s3://bucket/folder") from error
        self.url, self.root = url, root.rstrip("/")

    def fetch(self, store: Store, stage: str, key: str) -> Artifact | None:
        """Copies an artifact into the local store and verifies it; None if it is missing, damaged or out of reach."""
        folder = store.attempt(stage, key) / "fetched"
        try:
            text = self._patiently(lambda: self.filesystem.cat_file(self._manifest(stage, key)))
            artifact = Artifact(folder, parse_json(text, ManifestShape))
            if (artifact.stage, artifact.key) != (stage, key):
                raise DamagedArtifact(f"it is the manifest of {artifact.stage} {artifact.key}")
            self._download(artifact)
        except FileNotFoundError:  # no manifest yet, or the mirror is being cleared
            return None
        except (Unreachable, DamagedArtifact, ValueError, KeyError, TypeError) as error:
            log.warning("%s %s cannot be read from %s, so it is computed: %s", stage, key[:12], self.url, error)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        (folder / MANIFEST).write_bytes(text)
        flush_tree(folder)
        final = store.path(stage, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, final)
        flush_folder(final.parent)
        shutil.rmtree(store.attempt(stage, key), ignore_errors=True)
        return Artifact(final, artifact.manifest)

    def offer(self, artifact: Artifact, replace: bool = False) -> bool:
        """Uploads missing files, then the manifest; returns whether the mirror has the artifact."""
        marker = self._manifest(artifact.stage, artifact.key)
        try:
            if not replace and self._size(marker) is not None:
                return True
            for name, entry in artifact.manifest["files"].items():
                target = self._object(entry["sha256"])
                if self._size(target) != entry["bytes"]:
                    self._patiently(partial(self.filesystem.put_file, str(artifact.file(name)), target))
            manifest = artifact.file(MANIFEST).read_bytes()
            self._patiently(lambda: self.filesystem.pipe_file(marker, manifest))
        except (Unreachable, FileNotFoundError) as error:  # a missing bucket is also "not found"
            log.warning(
                "%s could not be copied to %s; the next run tries again: %s", artifact.path.name[:12], self.url, error
            )
            return False
        return True

    def _download(self, artifact: Artifact) -> None:
        """Downloads every file of a manifest into the artifact's folder and checks it."""
        shutil.rmtree(artifact.path, ignore_errors=True)
        artifact.path.mkdir(parents=True)
        for name, entry in artifact.manifest["files"].items():
            target = artifact.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = self._object(entry["sha256"])
            self._patiently(partial(self.filesystem.get_file, source, str(target)))
        check_contents(artifact)
        check_files(artifact)

    def _size(self, path: str) -> int | None:
        """Returns the size of an object in bytes; None if it does not exist."""
        try:
            return self._patiently(lambda: self.filesystem.info(path)["size"])
        except FileNotFoundError:
            return None

    def _patiently(self, action: Callable[[], T]) -> T:
        """Retries with growing pauses, except for a missing object."""
        if time.monotonic() < _away_until.get(self.url, 0.0):
            raise Unreachable("it did not answer shortly before")
        for number in range(TRIES):
            try:
                return action()
            except FileNotFoundError:
                raise
            except Exception as error:  # noqa: BLE001 - drivers raise what they like; trying again decides
                reason = f"{type(error).__name__}: {error}"
                time.sleep(FIRST_PAUSE * 2**number if number + 1 < TRIES else 0)
        _away_until[self.url] = time.monotonic() + AWAY_SECONDS
        raise Unreachable(reason)

    def _manifest(self, stage: str, key: str) -> str:
        return f"{self.root}/artifacts/{stage}/{key}.json"

    def _object(self, sha256: str) -> str:
        if not (len(sha256) == 64 and sha256.isalnum()):
            raise DamagedArtifact(f"'{sha256}' is not a sha256")
        return f"{self.root}/objects/{sha256}"


def mirror_of(runtime: RuntimeSettings) -> Mirror | None:
    """Returns the mirror that the recipe or SELFTRAIN_STORE names, if any."""
    url = runtime.store or os.environ.get("SELFTRAIN_STORE")
    return Mirror(url) if url else None
