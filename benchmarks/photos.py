"""Photographs with few labels on a CPU: what pretrained weights, features, tuning and pseudo-labels are worth.

    python benchmarks/photos.py --data FOLDER --weights FILE [--arms NAME …] [--labels 5 10 25] [--seeds 0 1 2 3 4]

FOLDER has photos-flowers.parquet and photos-sign-digits.parquet: columns `path`, `image` (bytes of an encoded
image), `label` and `split` (train or test). FILE holds EfficientNet-Lite0's weights. The labelled images of a draw come
from the rows named train; all of these rows are unlabelled images. There are no validation images: with so few labels,
each is worth more in training. All arms of a draw have the same labels and are tested on the same images. `rounds` is
configs/photos.yaml, and `tuned on labels` is its teacher. `from scratch` is the template for networks from random
weights; compare its minutes before its accuracy. Each finished cell is put on file at once and is not computed again;
an interrupted run resumes at its checkpoint in `--workspace`. A job has one thread, and its time is the processor's,
features included.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cifar10 import Counting, deviation, end_with_parent
from benchmarks.report import RESULTS, publish
from selftrain.flows.rounds.self_training import self_training
from selftrain.ssl_tasks.settings.recipe import BUILT_IN, parse_recipe
from selftrain.ssl_tasks.settings.recipe_text import read_values
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import write_atomically

CELLS = RESULTS / "photos_cells.json"
SETS = ("sign-digits", "flowers")
PROBE, PROPAGATED, TUNED, ROUNDS, SCRATCH = "linear probe", "propagation", "tuned on labels", "rounds", "from scratch"
ARMS = (PROBE, PROPAGATED, TUNED, ROUNDS, SCRATCH)
GAINS = {PROBE: 12.0, TUNED: 3.0, SCRATCH: 25.0}  # points by which `rounds` should be above, at FEW labels
FEW = (5, 10)  # labels of each class
MINUTES = 10.0  # of a processor, that `rounds` may take
SIZE = 112  # pixels of the side of the images, as in photos.yaml
SCRATCH_STEPS = {"teacher": 250, "student": 150}

Name = tuple[str, str, int, int]  # arm, set, labels of each class, seed
Cells = dict[Name, dict[str, Any]]


def config(name: Name, data: Path, weights: Path) -> RunConfig:
    """The recipe of one cell."""
    arm, images, labels, seed = name
    template = BUILT_IN / ("image_folder.yaml" if arm == SCRATCH else "photos.yaml")
    text = template.read_text().replace("pretrained: true", f"pretrained: {json.dumps(str(weights))}")
    recipe: dict[str, Any] = read_values(text)
    linear = {"model": recipe["teacher"]["model"], "method": {"name": "linear"}}
    if arm == PROBE:
        recipe |= {"teacher": linear, "rounds": []}
    elif arm == PROPAGATED:
        several = {"predict": {"source": "propagate"}, "gate": {"enabled": False}, "student": linear}
        recipe |= {"teacher": linear, "rounds": 1, "round": several}
    elif arm == TUNED:
        recipe |= {"rounds": []}
    elif arm == SCRATCH:
        recipe["teacher"]["train"]["steps"] = SCRATCH_STEPS["teacher"]
        recipe["round"]["student"]["train"]["steps"] = SCRATCH_STEPS["student"]
        recipe["round"]["predict"] = {}  # a temperature could be fitted to validation images alone
    source = {"name": "table", "path": str(data / f"photos-{images}.parquet"), "id": "path", "split": "split"}
    split = {"labels_per_class": labels, "validation": 0, "seed": seed}
    return parse_recipe(
        recipe | {"seed": seed, "data": {"source": source, "image_size": SIZE, "split": split}}, template
    ).config


def cell(name: Name, data: Path, weights: Path, workspace: Path) -> dict[str, Any]:
    """One run: test accuracy of every model in turn, and CPU minutes, those of reused stages included."""
    answers = Counting(workspace, threads=1)
    rounds = self_training(config(name, data, weights), answers).rounds
    return {
        "accuracy": [100 * (line.test_accuracy or 0.0) for line in rounds],
        "precision": [100 * (line.pseudo_label_precision or 0.0) for line in rounds[1:]],
        "selected": [line.selected for line in rounds[1:]],
        "CPU minutes": answers.seconds / 60,
    }


def on_file() -> Cells:
    """Cells of earlier calls."""
    found = json.loads(CELLS.read_text()) if CELLS.exists() else []
    return {(one.pop("arm"), one.pop("set"), one.pop("labels"), one.pop("seed")): one for one in found}


def put_on_file(cells: Cells) -> None:
    """One cell a line, in the order of the names, so that two lists of them differ where they differ."""
    named = (dict(zip(("arm", "set", "labels", "seed"), name, strict=True)) | cells[name] for name in sorted(cells))
    write_atomically(CELLS, "[\n" + ",\n".join(map(json.dumps, named)) + "\n]\n")


def compute(missing: Sequence[Name], jobs: int, deadline: float, *how: Path) -> Iterator[tuple[Name, dict[str, Any]]]:
    """Cells as they are finished, some at a time; after the deadline none is begun."""
    todo = iter(missing)
    running: dict[Future[dict[str, Any]], Name] = {}
    with ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool:
        while True:
            while len(running) < jobs and time.monotonic() < deadline and (following := next(todo, None)):
                running[pool.submit(cell, following, *how)] = following
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result()


def table(cells: Cells) -> list[dict[str, Any]]:
    """Of each arm, set and number of labels: accuracy over the draws, what `rounds` is above it, and minutes."""
    rows = []
    for images in SETS:
        for labels in sorted({name[2] for name in cells}):
            rounds = last_of(cells, ROUNDS, images, labels)
            for arm in ARMS:
                found = last_of(cells, arm, images, labels)
                if not found:
                    continue
                above = [rounds[seed] - found[seed] for seed in found if seed in rounds]
                minutes = [one["CPU minutes"] for name, one in cells.items() if name[:3] == (arm, images, labels)]
                rows.append(
                    {
                        **{"set": images, "labels a class": labels, "arm": arm, "draws": len(found)},
                        "accuracy %": statistics.mean(found.values()),
                        "std": deviation(list(found.values())),
                        "rounds above it": statistics.mean(above) if above and arm != ROUNDS else "",
                        "std of that": deviation(above) if arm != ROUNDS else "",
                        "models in turn": in_turn(cells, arm, images, labels),
                        "CPU minutes": statistics.mean(minutes),
                    }
                )
    return rows


def last_of(cells: Cells, arm: str, images: str, labels: int) -> dict[int, float]:
    """Accuracy of the last model, by seed."""
    return {name[3]: one["accuracy"][-1] for name, one in cells.items() if name[:3] == (arm, images, labels)}


def in_turn(cells: Cells, arm: str, images: str, labels: int) -> str:
    """Mean accuracy after each round."""
    runs = [one["accuracy"] for name, one in cells.items() if name[:3] == (arm, images, labels)]
    whole = [run for run in runs if len(run) == max(map(len, runs))]  # a gate may end a run early
    return " → ".join(f"{statistics.mean(values):.1f}" for values in zip(*whole, strict=True))


def gains(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `rounds` is above each arm at few labels, the mean over sets and numbers of labels; and its minutes."""
    found: dict[str, Any] = {}
    for arm, wanted in GAINS.items():
        values = [row["rounds above it"] for row in rows if row["arm"] == arm and row["labels a class"] in FEW]
        known = [value for value in values if value != ""]
        if known:
            found |= {f"above {arm}": statistics.mean(known), f"target above {arm}": f">= {wanted:g} points"}
    minutes = [row["CPU minutes"] for row in rows if row["arm"] == ROUNDS and row["labels a class"] in FEW]
    if minutes:
        found |= {"minutes of rounds": max(minutes), "target minutes": f"<= {MINUTES:g}"}
    reached = [found.get(f"above {arm}", 0.0) >= wanted for arm, wanted in GAINS.items()]
    return found | {"meets": bool(minutes) and all(reached) and max(minutes) <= MINUTES}


def main() -> None:
    """Computes what is missing, as far as the time goes, and reports what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one draw of one arm: no figures")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, default=Path(".selftrain-photos"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--labels", nargs="+", type=int, default=[5, 10, 25], help="of each class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cells at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after them")
    wanted = parser.parse_args()
    if wanted.quick:
        wanted.arms, wanted.sets, wanted.labels, wanted.seeds = [PROBE], ["sign-digits"], [5], [0]
    cells = {} if wanted.quick else on_file()
    names = [
        (arm, images, labels, seed)
        for seed in wanted.seeds
        for labels in wanted.labels
        for images in wanted.sets
        for arm in wanted.arms
    ]
    missing = [name for name in names if name not in cells]
    how = wanted.data.absolute(), wanted.weights.absolute(), wanted.workspace.absolute()
    for name, result in compute(missing, wanted.jobs, time.monotonic() + 60 * wanted.minutes, *how):
        cells[name] = result
        print(name, result, file=sys.stderr, flush=True)
        if not wanted.quick:
            put_on_file(cells)
    rows = table(cells)
    publish("photos", rows, gains(rows), wanted.quick)


if __name__ == "__main__":
    main()
