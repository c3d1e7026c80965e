"""The quickstart over 5 seeds: test accuracy of the teacher and of each round's student.

    python benchmarks/quickstart.py [--quick] [--workspace FOLDER] [--threads 1]

A seed draws the split, the weights and the batches. The stages run as plain functions in this process, whose answers
are those of `selftrain run quickstart`; `seconds` is their own time, without orchestration (benchmarks/pipeline.py).
The last student counts, not the best.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.methods_digits import Inline
from benchmarks.report import publish
from selftrain.flows.rounds.self_training import self_training
from selftrain.ssl_tasks.settings.recipe import load_recipe

SEEDS = (0, 1, 2, 3, 4)
ACCURACY = 95.0  # % of the last student at the mean
QUICK = ("teacher.train.steps=20", "round.student.train.steps=20")


def measure(seed: int, overrides: tuple[str, ...], workspace: Path, threads: int) -> dict[str, Any]:
    """One seed's row: accuracies in percent."""
    config = load_recipe("quickstart", (f"seed={seed}", f"data.split.seed={seed}", *overrides)).config
    started = time.monotonic()
    lines = self_training(config, Inline(workspace, threads)).rounds
    tested = [100 * (line.test_accuracy or 0.0) for line in lines]
    row: dict[str, Any] = {"seed": seed, "teacher": tested[0]}
    row |= {f"student {number}": accuracy for number, accuracy in enumerate(tested[1:], 1)}
    return row | {"last": tested[-1], "gain": tested[-1] - tested[0], "seconds": time.monotonic() - started}


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps of each network: no figures")
    parser.add_argument("--workspace", type=Path, help="keeps what was run (its seconds then mean nothing)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    seeds, overrides = (SEEDS[:1], QUICK) if arguments.quick else (SEEDS, ())
    with tempfile.TemporaryDirectory() as temporary:
        workspace = (arguments.workspace or Path(temporary)).absolute()
        rows = [measure(seed, overrides, workspace, arguments.threads) for seed in seeds]
    mean, least = statistics.mean(row["last"] for row in rows), min(row["gain"] for row in rows)
    summary = {"seeds": list(seeds), "mean_teacher": statistics.mean(row["teacher"] for row in rows)}
    summary |= {"mean_last_student": mean, "least_gain": least, "threads": arguments.threads}
    summary |= {"target": f"mean >= {ACCURACY:g} %, better than the teacher on every seed"}
    publish("quickstart", rows, summary | {"meets": mean >= ACCURACY and least > 0}, arguments.quick)


if __name__ == "__main__":
    main()
