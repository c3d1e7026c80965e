"""Finds the remains of a run that ended or died: processes, leases, and states that claim to run."""

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import psutil

from selftrain.ssl_tasks.store.locks import file_lock
from tests.clock import HANG
from tests.flows.tiny import selftrain

GPU = {"CUDA_VISIBLE_DEVICES": "0"}  # pretended, so that there is a lease to be held


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    """An answer of Prefect's or MLflow's database, read without their libraries."""
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def unended_in_prefect(database: Path) -> list[tuple[Any, ...]]:
    """Flow runs and task runs that have not come to an end."""
    found = [
        row for table in ("flow_run", "task_run") for row in rows(database, f"select name, state_type from {table}")
    ]
    return [(name, state) for name, state in found if state not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]


def claims_to_run(workspace: Path) -> list[object]:
    """Everything that says it runs: our records, Prefect's flow and task runs, MLflow's runs."""
    answer = json.loads(selftrain(workspace, "status", "--json").stdout)
    ours = [one["name"] for one in answer["stages"] if one["state"] == "running"]
    whole = [answer["run"]] if answer["state"] in ("running", "waiting") else []
    mlflow = rows(workspace / "mlflow.db", "select name, status from runs where status in ('RUNNING', 'SCHEDULED')")
    return [*ours, *whole, *unended_in_prefect(workspace / "prefect" / "prefect.db"), *mlflow]


def nobody_holds_the_gpu(workspace: Path) -> bool:
    """Whether the lease that was taken is free again."""
    lock = workspace / "locks" / "gpu-0.lock"
    assert lock.exists(), "it was taken"
    with file_lock(lock, blocking=False):
        return True


def marked(mark: str) -> list[psutil.Process]:
    """Every living process that has inherited SELFTRAIN_TEST=mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SELFTRAIN_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def assert_nobody_is_left(mark: str) -> None:
    """All of them end by themselves, soon."""
    deadline = time.monotonic() + HANG
    while left := marked(mark):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.2)


def kill_marked(mark: str) -> None:
    """Ends all of them: what a failed test leaves must not disturb another one."""
    for one in marked(mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
