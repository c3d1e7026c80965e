"""What nothing needs any more: artifacts that no run names, what dead attempts left, and on demand the cache."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flows.environment import workspace_folder
from ssl_tasks.artifacts import Store, file_lock
from ssl_tasks.errors import UserError
from ssl_tasks.runs import alive, all_runs


@dataclass(frozen=True)
class Cleaned:
    """What `clean` removed, or would remove, and what removing the cache frees or would free."""

    paths: tuple[Path, ...]
    bytes: int
    cache_bytes: int
    evaluations: int = 0  # of these, answers of `selftrain evaluate`, which no run names
    at_work: tuple[str, ...] = ()  # runs that may name an artifact any moment now: until they end, all are kept


def clean(workspace: str | Path | None = None, dry_run: bool = True, cache: bool = False) -> Cleaned:
    """Removes artifacts that no run names, quarantined ones, and what dead attempts left. A dry run by default.

    With `cache` also decoded images, digests of files and labelled shards, which the next run makes again.
    """
    folder = workspace_folder(workspace)
    store = Store(folder / "store")
    artifacts, named, at_work = list(store.artifacts()), set[str](), []
    for one in all_runs(folder):
        named.update(stage.artifact for stage in one.stages())
        if one.info["state"] in ("running", "waiting") and alive(one.info):
            at_work.append(one.id)
    nameless = [artifact for artifact in artifacts if str(artifact.path) not in named and not at_work]
    unreferenced = [artifact.path for artifact in nameless]
    evaluations = sum(artifact.stage == "evaluate" for artifact in nameless)
    debris = [path for kind in ("attempts", "quarantine") for path in (store.root / kind).glob("*")]
    idle = [path for path in debris if not _in_use(store, path)]
    if cache and not dry_run and (at_work or len(idle) < len(debris)):
        raise UserError(
            "a run is at work in this workspace and reads the cache; expected none. Wait for it to end, or stop it, "
            "and clean again"
        )
    paths, cached = (*unreferenced, *idle), sorted((folder / "cache").glob("*"))
    cleaned = Cleaned((*paths, *(cached if cache else ())), _size(paths), _freed(cached), evaluations, tuple(at_work))
    if not dry_run:
        for path in cleaned.paths:
            shutil.rmtree(path)
    return cleaned


def _size(paths: Iterable[Path]) -> int:
    return sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())


def _freed(paths: Iterable[Path]) -> int:
    """Bytes that only these folders hold: a shard that is in an artifact too is one file with two names."""
    files = (file.stat() for path in paths for file in path.rglob("*") if file.is_file())
    return sum(one.st_size for one in files if one.st_nlink == 1)


def _in_use(store: Store, path: Path) -> bool:
    """Whether a process works in an attempt's folder right now."""
    try:
        with file_lock(store.root / "locks" / path.name, blocking=False):
            return False
    except BlockingIOError:
        return True
