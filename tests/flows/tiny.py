"""A whole pipeline in seconds, and ways to run it as a user does: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from selftrain.ssl_tasks.store.runs import Run, find_run
from tests.warm import Command

RECIPE = """\
name: tiny
data: {source: {name: digits}, split: {labels_per_class: 4, validation: 60, test: 60}}
teacher:
  model: {name: small_cnn, width: 8}
  train: {steps: 60, batch_size: 20, evaluate_every: 10, ema_decay: 0.9, learning_rate: 0.05}
rounds: 2
round:
  select: {threshold: 0.1}
  gate: {enabled: false}
  student:
    model: {name: small_cnn, width: 8}
    train: {steps: 30, batch_size: 10, unlabeled_ratio: 2, evaluate_every: 10, ema_decay: 0.9, learning_rate: 0.05}
runtime: {threads: 1, checkpoint_every: 0.2}
"""
STAGES = 2 + 1 + 2 * 5  # dataset, teacher, its evaluation; predict, select, student, evaluate, gate


def command(workspace: Path, *words: str) -> list[str]:
    """The command line of our own interpreter's selftrain."""
    return [sys.executable, "-m", "selftrain", "--workspace", str(workspace), *words]


def environment(**changes: str) -> dict[str, str]:
    """A user's environment, without what this test session has set for servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def start(workspace: Path, *words: str, session: bool = False, **changes: str) -> Command:
    """Starts the command in a fork that has its imports behind it; with `session`, in a process group of its own."""
    return Command(command(workspace, *words)[1:], environment(**changes), session)


def selftrain(workspace: Path, *words: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command to its end; where the interpreter's own variables are changed, in a new process."""
    line = command(workspace, *words)
    if any(name.startswith("PYTHON") for name in changes):
        given = environment(**changes)
        return subprocess.run(line, env=given, capture_output=True, text=True, timeout=900, check=False)
    done = start(workspace, *words, **changes)
    output, errors = done.communicate(timeout=900)
    return subprocess.CompletedProcess(line, done.returncode or 0, output, errors)


def write_recipe(folder: Path) -> str:
    """The recipe as a file."""
    path = folder / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


def states(run: Run) -> dict[str, str]:
    """Returns the state of each stage."""
    return {stage.name: stage.state for stage in run.stages()}


def outcome(run: Run) -> dict[str, Any]:
    """Everything that must be equal between two runs of one question."""
    timeless = [{k: v for k, v in line.items() if k != "seconds"} for line in run.summary["rounds"]]
    digests = {stage.name: stage.digest for stage in run.stages()}
    return {"rounds": timeless, "stopped": run.summary["stopped"], "digests": digests}


def last(workspace: Path) -> Run:
    """The newest run."""
    return find_run(workspace, "last")


def computed_in_total(workspace: Path) -> int:
    """Counts the computed stages of all runs of a workspace."""
    records = [json.loads(path.read_text()) for path in workspace.glob("runs/*/stages/*.json")]
    return sum(record["state"] == "computed" for record in records)
