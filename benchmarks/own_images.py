"""A newcomer's path through a folder of images: init, data, run, report; how long it takes, how good the models are.

    python benchmarks/own_images.py --data FOLDER [--seeds 0 1 2] [--labels 100] [--quick]

FOLDER has cifar10-train.parquet and cifar10-test.parquet with columns `image` (bytes of an encoded image) and
`label_name`. Of each seed's shuffled train images, `--labels` of each class go into class folders, all others into
`unlabeled/`; 2,000 of the test images into `test/`. The recipe is what `selftrain init` writes, but for the seed.
Wall seconds of each command, from the shell's call to its return.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd

from benchmarks.pipeline import selftrain
from benchmarks.report import publish

UNLABELED, TEST = 50_000, 2_000  # no train table has more
TARGET = 600.0  # seconds for all of it: the README says ten minutes


def write_folder(data: Path, folder: Path, labels: int, seed: int, unlabeled: int, test: int) -> None:
    """Class folders, `unlabeled/` and `test/`, of image files as the tables hold them."""
    shuffled = pd.read_parquet(data / "cifar10-train.parquet").sample(frac=1, random_state=seed)
    labeled = shuffled.groupby("label_name").head(labels)
    rest = shuffled.drop(labeled.index).head(unlabeled)
    held_out = pd.read_parquet(data / "cifar10-test.parquet").sample(test, random_state=seed)
    for place, images in (("{}", labeled), ("unlabeled", rest), ("test/{}", held_out)):
        for number, (label, content) in enumerate(zip(images["label_name"], images["image"], strict=True)):
            file = folder / place.format(label) / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def newcomer(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The commands in their order; seconds of each, and what the run's summary says of each model."""
    workspace, recipe = folder / "workspace", str(folder / "selftrain.yaml")
    changes = [f"seed={seed}"]
    if quick:
        changes += ["teacher.train.steps=10", "round.student.train.steps=10"]
        changes += ["round.gate.enabled=false", "round.select.threshold=0"]
    sets = [word for change in changes for word in ("--set", change)]
    row: dict[str, Any] = {"seed": seed}
    said = {}
    for verb, *words in (
        ("init", str(folder / "images"), "--output", recipe),
        ("data", recipe),
        ("run", recipe, *sets, "--json"),
        ("report", "last"),
    ):
        row[f"{verb} s"], said[verb] = selftrain(workspace, verb, *words)
    row["all s"] = sum(seconds for name, seconds in row.items() if name.endswith(" s"))
    for line in json.loads(said["run"])["rounds"]:
        row[f"student {line['round']}" if line["round"] else "teacher"] = 100 * line["test_accuracy"]
    return row


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, ten steps of each network: no figures")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--labels", type=int, default=100, help="of each class")
    wanted = parser.parse_args()
    seeds, unlabeled, test = (wanted.seeds[:1], 200, 100) if wanted.quick else (wanted.seeds, UNLABELED, TEST)
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="selftrain-own-") as folder:
            write_folder(wanted.data, Path(folder) / "images", wanted.labels, seed, unlabeled, test)
            rows.append(newcomer(Path(folder), seed, wanted.quick))
            print(rows[-1], file=sys.stderr, flush=True)
    last = [name for name in rows[0] if name.startswith("student")][-1]
    summary = {
        "labels": wanted.labels,
        "seconds": statistics.median(row["all s"] for row in rows),
        "mean_teacher": statistics.mean(row["teacher"] for row in rows),
        "mean_last_student": statistics.mean(row[last] for row in rows),
        "cores": len(os.sched_getaffinity(0)),
        "target": f"<= {TARGET:.0f} s, better than the teacher on every seed",
    }
    better = all(row[last] > row["teacher"] for row in rows)
    publish("own_images", rows, summary | {"meets": better and summary["seconds"] <= TARGET}, wanted.quick)


if __name__ == "__main__":
    main()
