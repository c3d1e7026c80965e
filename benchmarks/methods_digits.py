"""Every method on scikit-learn's digits with 5 labels a class, 3 seeds: test error, between two supervised ends.

    python benchmarks/methods_digits.py [--quick] [--workspace FOLDER] [--methods fixmatch uda] [--threads 2]

Each method's setting is its recipe in `configs/digits/`. A seed draws the split, the weights and the batches; all
methods see the same splits. What was run is kept in the workspace's store, so an interrupted run resumes where it
stopped. DivideMix, which cleans labels, learns from 40 labels a class of which 40 % are wrong, as a third supervised
row does.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import publish
from selftrain.flows.rounds.self_training import self_training
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.methods.table import METHODS
from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.settings.run_config import RunConfig, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

SEEDS = (0, 1, 2)
ALL_LABELS = ("data.split.labels_per_class=null",)
WRONG_LABELS = ("data.split.labels_per_class=40", "data.split.label_noise=0.4")
SUPERVISED = {"supervised": (), "fully supervised": ALL_LABELS, "supervised, 40 % wrong": WRONG_LABELS}


class Inline:
    """Answers stages in this process, from the store where it can."""

    def __init__(self, workspace: Path, threads: int) -> None:
        self.workspace, self.runtime = workspace, RuntimeSettings(threads=threads, device="cpu")

    def fingerprint(self, config: RunConfig) -> str:
        from selftrain.ssl_tasks.data.sources import fingerprint

        return fingerprint(config.data, self.workspace / "cache")

    def run(self, request: Request, round_number: int) -> Artifact:
        return execute(request, self.workspace, self.runtime).artifact

    def submit(self, request: Request, round_number: int) -> Callable[[], Artifact]:
        artifact = self.run(request, round_number)
        return lambda: artifact

    def hold(self, round_number: int, selection: Artifact) -> None:
        """Does not wait for approval."""

    def approve(self, selection: Artifact) -> None:
        """Nor to be told so."""

    def corrections(self) -> None:
        """Returns no corrections."""


def digits_error(recipe: str, seed: int, workspace: Path, threads: int = 1, overrides: tuple[str, ...] = ()) -> float:
    """The test error in percent of the last model that a recipe makes."""
    config = load_recipe(recipe, (f"seed={seed}", f"data.split.seed={seed}", *overrides)).config
    accuracy = self_training(config, Inline(workspace, threads)).rounds[-1].test_accuracy
    assert accuracy is not None, "every split of digits has a test set"
    return 100 * (1 - accuracy)


def baseline(method: str) -> str:
    """The supervised row that a method has to beat: the one with its labels."""
    return "supervised, 40 % wrong" if method == "dividemix" else "supervised"


def measure(methods: list[str], seeds: tuple[int, ...], workspace: Path, threads: int) -> list[dict[str, Any]]:
    """Error, mean and deviation of each row."""
    plan = [(label, "supervised", overrides) for label, overrides in SUPERVISED.items()]
    plan += [(name, name, ()) for name in methods if name != "supervised"]
    rows = []
    for label, recipe, overrides in plan:
        errors = [digits_error(f"digits/{recipe}", seed, workspace, threads, overrides) for seed in seeds]
        deviation = statistics.stdev(errors) if len(errors) > 1 else 0.0
        row = {"method": label, "error %": statistics.mean(errors), "std": deviation}
        rows.append({**row, **{f"seed {seed}": error for seed, error in zip(seeds, errors, strict=True)}})
        print(f"{label}: {row['error %']:.2f} ± {deviation:.2f}", file=sys.stderr, flush=True)
    return rows


def summarise(rows: list[dict[str, Any]], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Lists the methods that do not beat supervised learning on the same labels."""
    errors = {row["method"]: row["error %"] for row in rows}
    losers = [name for name in errors if name not in SUPERVISED and errors[name] >= errors[baseline(name)]]
    return {"seeds": list(seeds), "target": "every method beats supervised", "meets": not losers, "losers": losers}


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of a few methods")
    parser.add_argument("--workspace", type=Path, help="keeps what was run; default a temporary folder")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=sorted(METHODS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    methods, seeds = (["fixmatch", "mean_teacher"], SEEDS[:1]) if arguments.quick else (arguments.methods, SEEDS)
    with tempfile.TemporaryDirectory() as temporary:
        workspace = (arguments.workspace or Path(temporary)).absolute()
        rows = measure(methods, seeds, workspace, arguments.threads)
    a_part = set(arguments.methods) != set(METHODS)  # it does not take the place of all on file
    publish("methods_digits", rows, summarise(rows, seeds), arguments.quick or a_part)


if __name__ == "__main__":
    main()
