"""Checks this machine (`doctor`), and deletes files that are no longer needed (`clean`).

`clean` removes artifacts that no run references, the remains of dead attempts and, if asked, the cache.
"""

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from selftrain.flows.environment import workspace_folder
from selftrain.ssl_tasks.errors import UserError
from selftrain.ssl_tasks.store.artifacts import Store
from selftrain.ssl_tasks.store.locks import alone, file_lock
from selftrain.ssl_tasks.store.runs import alive, all_runs
from selftrain.ssl_tasks.tracking.spool import without_password

LEAST_FREE_GB = 2.0
SECONDS = 5.0


class Finding(NamedTuple):
    """The result of one check. `ok` is False if a run would fail or be at risk."""

    what: str
    found: str
    ok: bool


def examine(workspace: Path) -> list[Finding]:
    """Checks everything that a run needs, without starting one."""
    return [
        Finding("python", platform.python_version(), True),
        *(_version(name) for name in ("torch", "torchvision", "prefect", "mlflow", "albumentations", "duckdb")),
        _torch(),
        _disk(workspace),
        _writable(workspace),
        _server(
            "Prefect",
            os.environ.get("PREFECT_API_URL"),
            "/health",
            "started within each run (PREFECT_API_URL is not set)",
        ),
        _server("MLflow", os.environ.get("MLFLOW_TRACKING_URI"), "/health", f"SQLite in {workspace}"),
    ]


def _version(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), True)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed. Install it: pip install selftrain", False)


def _torch() -> Finding:
    import torch

    from selftrain.ssl_tasks.execution.devices import computed_by, resolve_device, resolve_precision

    device = resolve_device("auto")
    found = computed_by(device, resolve_precision("auto", device))
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    where = ", ".join(names) if names else f"CPU, {os.cpu_count()} cores, {found['instruction_set']}"
    return Finding("compute", f"{where}; precision: auto means {found['precision']}", True)


def _disk(workspace: Path) -> Finding:
    there = next(path for path in (workspace, *workspace.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    return Finding("disk", f"{free:.1f} GB free at {there}", free >= LEAST_FREE_GB)


def _writable(workspace: Path) -> Finding:
    there = next(path for path in (workspace, *workspace.parents) if path.exists())
    return Finding("workspace", str(workspace), os.access(there, os.W_OK))


def _server(name: str, url: str | None, health: str, local: str) -> Finding:
    address = without_password(url or "")
    if not url or not url.startswith("http"):
        return Finding(name, address or local, True)
    import httpx

    try:
        answer = httpx.get(url.rstrip("/") + health, timeout=SECONDS)
        return Finding(name, f"{address} answers {answer.status_code}", answer.status_code < 500)
    except httpx.HTTPError as error:
        found = f"{address} does not answer ({type(error).__name__}). Start it, or unset its environment variable"
        return Finding(name, found, False)


@dataclass(frozen=True)
class Cleaned:
    """The files that `clean` deleted or would delete, and the space that deleting the cache frees."""

    paths: tuple[Path, ...]
    bytes: int
    cache_bytes: int
    evaluations: int = 0  # number of `paths` that are results of `selftrain evaluate`, which no run references
    at_work: tuple[str, ...] = ()  # runs that may use any artifact; while they run, all artifacts are kept


@dataclass(frozen=True)
class _Idle:
    """The files that are not needed at the moment, and the runs at work."""

    artifacts: dict[Path, str]  # and their stages
    debris: tuple[Path, ...]
    at_work: tuple[str, ...]
    attempts_at_work: bool

    @property
    def paths(self) -> tuple[Path, ...]:
        return (*self.artifacts, *self.debris)


def clean(workspace: str | Path | None = None, dry_run: bool = True, cache: bool = False) -> Cleaned:
    """Delete artifacts that no run references, quarantined ones, and files of dead attempts. By default a dry run.

    With `cache`, also delete decoded images, file digests and prediction shards, which the next run writes again.
    """
    folder = workspace_folder(workspace)
    with alone(folder) as unlocked:
        idle = _idle(folder, unlocked)
    # Counting takes minutes in a large store, so it runs without the lock. The list is made again before deleting.
    sizes, cached = {path: _size([path]) for path in idle.paths}, sorted((folder / "cache").glob("*"))
    cache_bytes = _freed(cached)
    if dry_run:
        return _cleaned(idle, sizes, cached if cache else [], cache_bytes)
    with alone(folder) as unlocked:
        idle = _idle(folder, unlocked)
        if cache and (idle.at_work or idle.attempts_at_work):
            raise UserError(
                f"{', '.join(idle.at_work) or 'a run'} is using the cache of this workspace; expected no run. Wait "
                "until it ends, or stop it. Then: selftrain clean --yes --cache"
            )
        gone = {path for path in idle.debris if path in sizes and _removed(folder, path)}
        gone |= (artifacts := idle.artifacts.keys() & sizes.keys())
        for path in (*artifacts, *(cached if cache else ())):
            shutil.rmtree(path)
    return _cleaned(idle, {path: sizes[path] for path in gone}, cached if cache else [], cache_bytes)


def _idle(folder: Path, unlocked: bool) -> _Idle:
    """Finds unneeded files; `unlocked` says that no process holds the workspace's lock, whatever the records say."""
    store = Store(folder / "store")
    artifacts, named, at_work = list(store.artifacts()), set[str](), []
    for one in all_runs(folder):
        named.update(stage.artifact for stage in one.stages())
        if one.info["state"] in ("running", "waiting") and alive(one.info, folder):
            here = one.info["host"] == socket.gethostname()
            at_work.append(one.id if here else f"{one.id} on {one.info['host']}")
    if not unlocked and not at_work:
        at_work.append("another command, such as `selftrain evaluate`,")
    nameless = {one.path: one.stage for one in artifacts if str(one.path) not in named and not at_work}
    debris = [path for kind in ("attempts", "quarantine") for path in sorted((store.root / kind).glob("*"))]
    idle = tuple(path for path in debris if not _in_use(store, path))
    return _Idle(nameless, idle, tuple(at_work), len(idle) < len(debris))


def _removed(folder: Path, path: Path) -> bool:
    """Deletes the files of an attempt, unless another attempt has started in its folder."""
    try:
        with file_lock(folder / "store" / "locks" / path.name, blocking=False):
            shutil.rmtree(path)
    except BlockingIOError:
        return False
    return True


def _cleaned(idle: _Idle, sizes: dict[Path, int], cached: Sequence[Path], cache_bytes: int) -> Cleaned:
    paths = [path for path in idle.paths if path in sizes]
    evaluations = sum(idle.artifacts.get(path) == "evaluate" for path in paths)
    return Cleaned((*paths, *cached), sum(sizes.values()), cache_bytes, evaluations, idle.at_work)


def _size(paths: Iterable[Path]) -> int:
    return sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())


def _freed(paths: Iterable[Path]) -> int:
    """Counts the bytes that only these folders hold; a shard that an artifact also links is not counted."""
    files = (file.stat() for path in paths for file in path.rglob("*") if file.is_file())
    return sum(one.st_size for one in files if one.st_nlink == 1)


def _in_use(store: Store, path: Path) -> bool:
    """Returns whether a process is using an attempt's folder."""
    try:
        with file_lock(store.root / "locks" / path.name, blocking=False):
            return False
    except BlockingIOError:
        return True
