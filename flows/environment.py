"""The workspace folder, and the environment that Prefect and MLflow must find before they are imported."""

import os
from pathlib import Path

DEFAULT_WORKSPACE = ".selftrain"


def workspace_folder(given: str | Path | None = None) -> Path:
    """The workspace: the option, else SELFTRAIN_HOME, else `.selftrain` in the current folder."""
    return Path(given or os.environ.get("SELFTRAIN_HOME") or DEFAULT_WORKSPACE).expanduser().absolute()


def set_environment(workspace: Path) -> None:
    """Keeps Prefect and MLflow inside the workspace, quiet and off the network; a user's own server stays."""
    os.environ.update(
        DO_NOT_TRACK="true",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        MLFLOW_DISABLE_TELEMETRY="true",
        NO_ALBUMENTATIONS_UPDATE="1",
        RAY_USAGE_STATS_ENABLED="0",
    )
    if "PREFECT_API_URL" not in os.environ:  # our own API: isolated from the user's profile and database
        os.environ["PREFECT_HOME"] = str(workspace / "prefect")
        os.environ["PREFECT_PROFILE"] = "ephemeral"
        os.environ.pop("PREFECT_API_KEY", None)
    os.environ.setdefault("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "0.2")  # a run's end waits for the last batch
    # We print ourselves; Prefect's UI keeps the full logs.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
