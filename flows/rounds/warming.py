"""Starts slow helpers of a run early, on another core, while Prefect is imported."""

from collections.abc import Collection
from pathlib import Path

from selftrain.ssl_tasks.execution.process import start_fork_server
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import all_runs, dumped
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.tracker import start_ahead


def warm_up(config: RunConfig, workspace: Path, force: Collection[str] = ()) -> None:
    """Starts the process that speaks with MLflow, and the one that starts stages where any is likely to be computed."""
    start_ahead(workspace, default_uri(workspace))
    if force or not _answered(config, workspace):
        start_fork_server()


def _answered(config: RunConfig, workspace: Path) -> bool:
    """Whether a run of the same settings is done. A guess at what the store will say: it costs no look at the data."""
    text = dumped(config)
    done = (run for run in all_runs(workspace) if run.info["state"] == "done")
    return any((run.path / "config.yaml").read_bytes() == text.encode() for run in done)
