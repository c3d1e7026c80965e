"""The workspace folder, and the environment that Prefect and MLflow must find before they are imported."""

import errno
import os
import shutil
import unicodedata
from pathlib import Path

from selftrain.ssl_tasks.errors import ConfigError, SelftrainError, cut

LEAST_FREE = 8_000_000  # bytes: less does not hold the databases of Prefect and MLflow
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
LONGEST_PATH = 400  # bytes: SQLite opens files of 512, and the names within are long too
DEFAULT_WORKSPACE = ".selftrain"
Workspace = str | Path | None  # as functions take it: None asks the environment


def workspace_folder(given: str | Path | None = None) -> Path:
    """The workspace: the option, else SELFTRAIN_HOME, else `.selftrain` in the current folder."""
    text = os.path.expanduser(given or os.environ.get("SELFTRAIN_HOME") or DEFAULT_WORKSPACE)
    folder = Path(text).absolute()
    problem = ""
    if "?" in str(folder):
        problem = "has a ? in its path, which the addresses of its databases cannot hold"
    elif any(unicodedata.category(letter) in ("Cc", "Cs") for letter in str(folder)):
        problem = "has a character in its path that is not text, such as the end of a line"
    elif len(os.fsencode(folder)) > LONGEST_PATH or any(len(os.fsencode(one)) > 255 for one in folder.parts):
        problem = f"has a path of {len(os.fsencode(folder))} bytes; expected {LONGEST_PATH} at most, 255 in each folder"
    if problem:
        name = cut(str(folder).encode(errors="backslashreplace").decode())
        raise ConfigError(f"the workspace {name} {problem}. Name another one: selftrain --workspace DIR …")
    return folder


def make_workspace(folder: Path) -> None:
    """The folder, or an error in one sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the workspace {folder} cannot be made ({error.strerror}); expected a folder that may be written to"
        raise ConfigError(f"{what}. Name another one: selftrain --workspace DIR …") from error
    if (free := shutil.disk_usage(folder).free) < LEAST_FREE:
        raise SelftrainError(
            f"no space left to write {folder}: {free / 1e6:.1f} MB are free, expected at least {LEAST_FREE / 1e6:.0f}; "
            "free some and run again"
        )


def refusal(error: OSError, workspace: Path) -> str:
    """What to say of an error where the workspace is another's or read-only; empty where it is another error."""
    if error.errno not in REFUSALS or not Path(str(error.filename)).is_relative_to(workspace):
        return ""
    return (
        f"the workspace {workspace} cannot be written to ({error.strerror}: {error.filename}); expected one of your "
        "own. Name another one: selftrain --workspace DIR …"
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
    if not os.environ.get("PREFECT_API_URL"):  # our own API: isolated from the user's profile and database
        os.environ.pop("PREFECT_API_URL", None)  # an empty one is none to us, and an address to Prefect
        os.environ["PREFECT_HOME"] = str(workspace / "prefect")
        os.environ["PREFECT_PROFILE"] = "ephemeral"
        os.environ.pop("PREFECT_API_KEY", None)
    os.environ.setdefault("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "0.2")  # a run's end waits for the last batch
    # We print ourselves; Prefect's UI keeps the full logs.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
