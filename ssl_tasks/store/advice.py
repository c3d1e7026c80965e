"""The one place that says how to continue a run: `run`, `status` and the report all ask it."""

import os
import shlex
from pathlib import Path

from selftrain.ssl_tasks.store.runs import Run

UNFINISHED = ("failed", "interrupted", "crashed")


def advice(run: Run) -> str:
    """The next step for a run, as a command that can be pasted; empty if it runs or is done."""
    match run.info["state"]:
        case "waiting":
            return f"look at its labels, then approve them: {_command(run, 'approve')}"
        case state if state in UNFINISHED:
            return f"continue with: {_command(run, 'rerun')}   (finished stages are reused)"
    return ""


def _command(run: Run, verb: str) -> str:
    usual = Path(os.path.expanduser(os.environ.get("SELFTRAIN_HOME") or ".selftrain")).absolute()
    elsewhere = [] if run.workspace == usual else ["--workspace", str(run.workspace)]
    return shlex.join(["selftrain", *elsewhere, verb, run.id])
