"""Lee's Pseudo-Label on scikit-learn's digits, 5 labels a class, 5 seeds: the gain in test error, by what is Lee's.

    python benchmarks/pseudo_label_digits.py [--quick] [--workspace FOLDER] [--threads 1]

MNIST is not part of scikit-learn. `configs/mnist/pseudo_label.yaml` with the digits as its source, a hidden layer of
200 and 600 steps (118 passes over 1,297 unlabelled images), against the same network without unlabelled images; and
the same with one part after the other as it is usual today. A seed draws the split, the weights and the batches. The
model is the last one; the test set is read once.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.methods_digits import digits_error
from benchmarks.report import publish

SEEDS = tuple(range(5))
RECIPE = "mnist/pseudo_label"
ON_DIGITS = (
    "data.source.name=digits",
    "data.split.labels_per_class=5",
    "data.split.test=500",
    "teacher.model.width=200",
    "teacher.train.steps=600",
    "teacher.train.momentum_warmup_steps=300",
    "teacher.train.evaluate_every=600",
    "teacher.train.precision=fp32",
    "evaluate.bootstrap=0",
)
SOFTMAX = ("teacher.method.units=softmax",)
DRY = ("teacher.model.dropout=0",)
OPTIMIZER = (
    "data.standardise=true",
    "teacher.train.learning_rate=0.03",
    "teacher.train.momentum=0.9",
    "teacher.train.momentum_warmup_steps=0",
    "teacher.train.nesterov=true",
    "teacher.train.schedule=cosine_7_16",
    "teacher.train.ema_decay=0.999",
)
LATE = ("teacher.method.ramp_start=0.1667", "teacher.method.ramp_end=1.0")
ARMS = {
    "Lee 2013": (),
    "softmax outputs": SOFTMAX,
    "no dropout": DRY,
    "FixMatch's SGD, rate and average": OPTIMIZER,
    "all three, and α full at the end": (*SOFTMAX, *DRY, *OPTIMIZER, *LATE),
}


def measure(
    arm: str, seeds: tuple[int, ...], settings: tuple[str, ...], workspace: Path, threads: int
) -> dict[str, Any]:
    """One arm's row."""

    def errors(*overrides: str) -> list[float]:
        given = (*ON_DIGITS, *ARMS[arm], *settings, *overrides)
        return [digits_error(RECIPE, seed, workspace, threads, given) for seed in seeds]

    supervised, taught = errors("teacher.method.weight=0"), errors()
    gains = [before - after for before, after in zip(supervised, taught, strict=True)]
    row = {
        "arm": arm,
        "supervised error %": statistics.mean(supervised),
        "pseudo-label error %": statistics.mean(taught),
        "gain": statistics.mean(gains),
        "std of the gain": statistics.stdev(gains) if len(gains) > 1 else 0.0,
        "least gain": min(gains),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, some steps: whether it runs, no figures")
    parser.add_argument("--workspace", type=Path, help="keeps what was run; default a temporary folder")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    seeds, settings = (SEEDS[:1], ("teacher.train.steps=20",)) if arguments.quick else (SEEDS, ())
    with tempfile.TemporaryDirectory() as temporary:
        workspace = (arguments.workspace or Path(temporary)).absolute()
        rows = [measure(arm, seeds, settings, workspace, arguments.threads) for arm in ARMS]
    lee = rows[0]
    summary = {
        "seeds": list(seeds),
        "labels": 50,
        "relative_gain": lee["gain"] / lee["supervised error %"],
        "target": "Lee's settings gain on every seed, at the mean at least a quarter of the error, as in print (26 %)",
        "meets": lee["least gain"] > 0 and lee["gain"] >= lee["supervised error %"] / 4,
    }
    publish("pseudo_label_digits", rows, summary, arguments.quick)


if __name__ == "__main__":
    main()
