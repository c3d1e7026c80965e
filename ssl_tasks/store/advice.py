"""States the next step for a run; the commands `run` and `status` and the report use this one text."""

import os
import shlex
from pathlib import Path

from selftrain.ssl_tasks.store.runs import Run

UNFINISHED = ("failed", "interrupted", "crashed")


def advice(run: Run) -> str:
    """Returns the next step for a run, as commands to paste; empty if the run is running or done."""
    match run.info["state"]:
        case "waiting":
            return f"review its pseudo-labels: {_command(run, 'labels')}\nthen approve them: {_command(run, 'approve')}"
        case state if state in UNFINISHED:
            return f"resume with: {_command(run, 'rerun')}   (finished stages are reused)"
    return ""


def _command(run: Run, verb: str) -> str:
    usual = Path(os.path.expanduser(os.environ.get("SELFTRAIN_HOME") or ".selftrain")).absolute()
    elsewhere = [] if run.workspace == usual else ["--workspace", str(run.workspace)]
    return shlex.join(["selftrain", *elsewhere, verb, run.id])
