"""Measures the overhead of the pipeline: the quickstart's wall time, a second run, and the response of the verbs.

    python benchmarks/pipeline.py [--quick] [--repeats 3]

`run` is the command in a fresh workspace: Prefect, MLflow, a process for each stage, hashing, the report. `bodies` is
the same stages as plain function calls in one process that has everything imported: nothing but their work. Both take
turns; what `run` takes longer is orchestration. The second run reuses every stage. The verbs are whole processes, from
the shell's call to its return, on the workspace of that run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import publish

PER_STAGE, PER_RUN = 1.0, 5.0  # seconds that orchestration may take
CACHED, VERB, HELP = 8.0, 1.0, 0.3  # seconds that these may take
QUICK = ("teacher.train.steps=20", "round.student.train.steps=20")

BODIES = """
import json, sys, time
from pathlib import Path
from benchmarks.methods_digits import Inline
from selftrain.flows.rounds.self_training import self_training
from selftrain.ssl_tasks.settings.recipe import load_recipe
import selftrain.ssl_tasks.preload
config = load_recipe("quickstart", tuple(sys.argv[2:])).config
self_training(config.model_copy(update={"rounds": ()}), Inline(Path(sys.argv[1]) / "warm", 1))
started = time.monotonic()
self_training(config, Inline(Path(sys.argv[1]) / "timed", 1))
print(json.dumps(time.monotonic() - started))
"""


def seconds_of(*words: str) -> tuple[float, str]:
    """Wall seconds of a command that must succeed, and what it printed."""
    started = time.monotonic()
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=alone())
    return time.monotonic() - started, done.stdout


def alone() -> dict[str, str]:
    """This environment without anybody's servers."""
    names = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "SELFTRAIN_HOME", "SELFTRAIN_STORE")
    root = str(Path(__file__).parents[1])
    return {name: value for name, value in os.environ.items() if name not in names} | {"PYTHONPATH": root}


def selftrain(workspace: Path, *words: str) -> tuple[float, str]:
    """The command line as a user calls it."""
    return seconds_of(str(Path(sys.executable).parent / "selftrain"), "--workspace", str(workspace), *words)


def whole_runs(folder: Path, repeats: int, overrides: tuple[str, ...]) -> tuple[dict[str, Any], Path]:
    """`run` and `bodies` in turn, each in a workspace of its own; the last run's workspace."""
    sets = [word for one in overrides for word in ("--set", one)]
    runs, bodies = [], []
    for turn in range(repeats):
        workspace = folder / f"run-{turn}"
        runs.append(selftrain(workspace, "run", "quickstart", *sets)[0])
        bodies.append(float(seconds_of(sys.executable, "-c", BODIES, str(folder / f"bodies-{turn}"), *overrides)[1]))
    stages = len(json.loads(selftrain(workspace, "status", "last", "--json")[1])["stages"])
    extra = statistics.median(run - body for run, body in zip(runs, bodies, strict=True))
    allowed = PER_RUN + PER_STAGE * stages
    row = {"what": "orchestration of the quickstart", "seconds": extra, "allowed": allowed, "stages": stages}
    row |= {"run": statistics.median(runs), "bodies": statistics.median(bodies)}
    return row | {"share": extra / row["run"]}, workspace


def verbs(workspace: Path, repeats: int, overrides: tuple[str, ...]) -> list[dict[str, Any]]:
    """The second run, and the verbs that look: medians."""
    sets = [word for one in overrides for word in ("--set", one)]
    asked = [
        ("run quickstart, again", CACHED, ["run", "quickstart", *sets]),
        ("status", VERB, ["status", "last"]),
        ("config", VERB, ["config", "quickstart"]),
        ("explain", VERB, ["explain", "last", "select-1"]),
        ("--help", HELP, ["--help"]),
    ]
    rows = []
    for what, allowed, words in asked:
        selftrain(workspace, *words)  # once for the disk's sake
        taken = [selftrain(workspace, *words)[0] for _ in range(repeats)]
        rows.append({"what": what, "seconds": statistics.median(taken), "allowed": allowed})
    return rows


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 steps of each network, one turn: no figures")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    repeats, overrides = (1, QUICK) if arguments.quick else (arguments.repeats, ())
    with tempfile.TemporaryDirectory(prefix="selftrain-pipeline-") as folder:
        row, workspace = whole_runs(Path(folder), repeats, overrides)
        rows = [row, *verbs(workspace, 2 * repeats - 1, overrides)]
    missed = [row["what"] for row in rows if row["seconds"] > row["allowed"]]
    summary = {"run_seconds": row["run"], "share_of_orchestration": row["share"], "missed": missed, "meets": not missed}
    publish("pipeline", rows, summary, arguments.quick)


if __name__ == "__main__":
    main()
