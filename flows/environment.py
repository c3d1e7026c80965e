"""Finds the workspace folder, and sets the environment that Prefect and MLflow must find when they are imported."""

import errno
import os
import shutil
import unicodedata
from pathlib import Path

from selftrain.ssl_tasks.errors import ConfigError, SelftrainError, cut

LEAST_FREE = 8_000_000  # bytes that the databases of Prefect and MLflow need at least
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
LONGEST_PATH = 400  # bytes: SQLite allows 512, and file names inside the folder are long
DEFAULT_WORKSPACE = ".selftrain"
Workspace = str | Path | None  # None: from the environment


def workspace_folder(given: str | Path | None = None) -> Path:
    """Returns the workspace: the option, else SELFTRAIN_HOME, else `.selftrain` in the current folder."""
    text = os.path.expanduser(given or os.environ.get("SELFTRAIN_HOME") or DEFAULT_WORKSPACE)
    folder = Path(text).absolute()
    problem = ""
    if "?" in str(folder):
        problem = "has a ? in its path, which the addresses of its databases cannot contain"
    elif any(unicodedata.category(letter) in ("Cc", "Cs") for letter in str(folder)):
        problem = "has a control character in its path, such as a line break"
    elif len(os.fsencode(folder)) > LONGEST_PATH or any(len(os.fsencode(one)) > 255 for one in folder.parts):
        problem = (
            f"has a path of {len(os.fsencode(folder))} bytes; expected at most {LONGEST_PATH}, and "
            "255 in each folder's name"
        )
    if problem:
        name = cut(str(folder).encode(errors="backslashreplace").decode())
        raise ConfigError(f"the workspace {name} {problem}. Choose another one: selftrain --workspace DIR …")
    return folder


def make_workspace(folder: Path) -> None:
    """Creates the workspace; raises an error of one sentence if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the workspace {folder} cannot be created ({error.strerror}); expected a folder that you may write to"
        raise ConfigError(f"{what}. Choose another one: selftrain --workspace DIR …") from error
    if (free := shutil.disk_usage(folder).free) < LEAST_FREE:
        raise SelftrainError(
            f"no space left to write {folder}: {free / 1e6:.1f} MB are free, expected at least {LEAST_FREE / 1e6:.0f}. "
            "Free some space (`selftrain clean` lists files to delete), then run the same command again"
        )


def refusal(error: OSError, workspace: Path) -> str:
    """Returns the message of an error if the workspace cannot be written to; empty for other errors."""
    if error.errno not in REFUSALS or not Path(str(error.filename)).is_relative_to(workspace):
        return ""
    return (
        f"the workspace {workspace} cannot be written to ({error.strerror}: {error.filename}); expected one "
        "that you may write to. Choose another one: selftrain --workspace DIR …"
    )


def set_environment(workspace: Path) -> None:
    """Keeps Prefect and MLflow inside the workspace, quiet and off the network; a user's own server stays."""
    os.environ.update(
        DO_NOT_TRACK="true",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        MLFLOW_DISABLE_TELEMETRY="true",
        NO_ALBUMENTATIONS_UPDATE="1",
        RAY_USAGE_STATS_ENABLED="0",
    )
    if not os.environ.get("PREFECT_API_URL"):  # our own API, isolated from the user's Prefect profile and database
        os.environ.pop("PREFECT_API_URL", None)  # Prefect would take an empty one for an address
        os.environ["PREFECT_HOME"] = str(workspace / "prefect")
        os.environ["PREFECT_PROFILE"] = "ephemeral"
        os.environ.pop("PREFECT_API_KEY", None)
    os.environ.setdefault("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "0.2")  # a run's end waits for the last batch
    # We print ourselves; Prefect's UI keeps the full logs.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
