"""Looks at the ground: Python, torch, GPUs, disk, Prefect and MLflow."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import NamedTuple

from selftrain.ssl_tasks.tracking.spool import without_password

LEAST_FREE_GB = 2.0
SECONDS = 5.0


class Finding(NamedTuple):
    """One thing looked at. `ok` is False where a run would fail or be at risk."""

    what: str
    found: str
    ok: bool


def examine(workspace: Path) -> list[Finding]:
    """Everything that a run needs, without starting one."""
    return [
        Finding("python", platform.python_version(), True),
        *(_version(name) for name in ("torch", "torchvision", "prefect", "mlflow", "albumentations", "duckdb")),
        _torch(),
        _disk(workspace),
        _writable(workspace),
        _server("Prefect", os.environ.get("PREFECT_API_URL"), "/health", "within each run; PREFECT_API_URL is not set"),
        _server("MLflow", os.environ.get("MLFLOW_TRACKING_URI"), "/health", f"SQLite in {workspace}"),
    ]


def _version(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), True)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed; pip install selftrain brings it", False)


def _torch() -> Finding:
    import torch

    from selftrain.ssl_tasks.execution.devices import computed_by, resolve_device, resolve_precision

    device = resolve_device("auto")
    found = computed_by(device, resolve_precision("auto", device))
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    where = ", ".join(names) if names else f"CPU, {os.cpu_count()} cores, {found['instruction_set']}"
    return Finding("compute", f"{where}; precision auto is {found['precision']}", True)


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
        found = f"{address} does not answer ({type(error).__name__}); start it or unset its variable"
        return Finding(name, found, False)
