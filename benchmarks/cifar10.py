"""CIFAR-10 on a CPU: methods, Noisy Student and its ablations, with 1,000 labels and the same budget of images.

    python benchmarks/cifar10.py --data FOLDER [--arms NAME …] [--seeds 4 5 6] [--images 256000] [--minutes 60]

FOLDER has cifar10-train.parquet and cifar10-test.parquet: columns `image` (bytes of an encoded image) and `label_name`.
As many images pass through every network with a gradient: MixMatch, which learns from two views of each unlabelled
image, takes two steps where the others take three. `images` is how many were drawn, by all networks of a run. The best
model on 1,000 validation images is tested once. Each finished cell is put on file at once, and is not computed again;
an interrupted run resumes at its checkpoint in `--workspace`, and arms share the stages that they have in common. So
the whole, hours on two cores, is done in parts. Networks this small use two cores best as two jobs of one thread.
What is compared: cifar10_arms.py.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cifar10_arms import ABLATIONS, ARMS, METHODS, config
from benchmarks.methods_digits import Inline
from benchmarks.report import RESULTS, publish
from selftrain.flows.rounds.self_training import self_training
from selftrain.ssl_tasks.execution.stage import Request
from selftrain.ssl_tasks.store.artifacts import Artifact, write_atomically

CELLS = RESULTS / "cifar10_cells.json"
NOTEBOOK = 62.77  # % that a published notebook of pseudo-labelling reaches with 1,000 labels and DenseNet-121
BASE, ONE_ROUND, CHAIN = "supervised", "1 round", "noisy_student, 3 rounds"
CHAINS = [CHAIN, "noisy_student, 3 rounds from mixmatch"]
CONSISTENCY = ["mean_teacher", "mixmatch", "uda", "fixmatch"]
UNLABELED = ["pseudo_label", *CONSISTENCY, *CHAINS]

Cells = dict[tuple[str, int, int], dict[str, Any]]  # by arm, seed and images for each network


class Counting(Inline):
    """Answers inline, and counts what the networks saw and took, reused or not.

    The time is the processor's, of all threads: a job may be paused, or share its core, and be resumed another day.
    """

    def __init__(self, workspace: Path, threads: int) -> None:
        super().__init__(workspace, threads)
        self.images, self.seconds = 0, 0.0

    def run(self, request: Request, round_number: int) -> Artifact:
        before = time.process_time()
        artifact = super().run(request, round_number)
        account = self.workspace / "cpu_seconds" / artifact.key
        seconds = time.process_time() - before + (float(account.read_text()) if account.exists() else 0.0)
        write_atomically(account, str(seconds))
        self.images += artifact.summary.get("images_seen", 0)
        self.seconds += seconds
        return artifact


def cell(arm: str, seed: int, images: int, data: Path, workspace: Path, threads: int) -> dict[str, Any]:
    """One run: accuracy of every model in turn, images and minutes."""
    answers = Counting(workspace, threads)
    summary = self_training(config(arm, seed, images, data), answers)
    tested = [100 * (line.test_accuracy or 0.0) for line in summary.rounds]
    rounds = summary.rounds[1:]
    labels = {
        "precision": [line.pseudo_label_precision for line in rounds],
        "selected": [line.selected for line in rounds],
    }
    return {"accuracy": tested, **labels, "images": answers.images, "CPU minutes": answers.seconds / 60}


def on_file() -> Cells:
    """Cells of earlier calls."""
    found = json.loads(CELLS.read_text()) if CELLS.exists() else []
    return {(one["arm"], one["seed"], one["budget"]): one for one in found}


def put_on_file(cells: Cells) -> None:
    """One cell a line, in the order of the arms, so that two lists of them differ where they differ."""
    ordered = sorted(cells, key=lambda name: (name[2], list(ARMS).index(name[0]), name[1]))
    named = ({"arm": name[0], "seed": name[1], "budget": name[2]} | cells[name] for name in ordered)
    write_atomically(CELLS, "[\n" + ",\n".join(map(json.dumps, named)) + "\n]\n")


def compute(
    missing: Sequence[tuple[str, int]], jobs: int, deadline: float, *how: Any
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Cells as they are finished, some at a time; after the deadline none is begun."""
    todo = iter(missing)
    running: dict[Future[dict[str, Any]], tuple[str, int]] = {}
    with ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool:
        while True:
            while len(running) < jobs and time.monotonic() < deadline and (following := next(todo, None)):
                running[pool.submit(cell, *following, *how)] = following
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield *running.pop(done), done.result()


def end_with_parent() -> None:
    """Ends a job whose parent was killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def table(cells: Cells, images: int, arms: Sequence[str], base: str) -> list[dict[str, Any]]:
    """Of each arm, over the seeds that it has: its last model, how far above `base` on the same seeds, and all."""
    bases = {seed: one["accuracy"][-1] for (arm, seed, size), one in cells.items() if (arm, size) == (base, images)}
    rows = []
    for arm in arms:
        found = {seed: one for (name, seed, size), one in cells.items() if (name, size) == (arm, images)}
        if not found:
            continue
        last = {seed: one["accuracy"][-1] for seed, one in found.items()}
        above = [last[seed] - bases[seed] for seed in last if seed in bases]
        row: dict[str, Any] = {"arm": arm, "seeds": len(found), "accuracy %": statistics.mean(last.values())}
        row |= {"std": deviation(list(last.values())), f"above {base}": statistics.mean(above) if above else ""}
        row["std of that"] = deviation(above)
        row["models in turn"] = in_turn([one["accuracy"] for one in found.values()])
        row["pseudo-labels"] = in_turn([one["selected"] for one in found.values()], ",.0f")
        row["of these right %"] = in_turn([[100 * share for share in one["precision"]] for one in found.values()])
        row |= {"images": int(max(one["images"] for one in found.values()))}
        minutes = [one["CPU minutes"] for one in found.values() if one["CPU minutes"] is not None]
        rows.append(row | {"CPU minutes": statistics.mean(minutes) if minutes else ""})
    return rows


def orders(cells: Cells, images: int) -> dict[str, str]:
    """Counts how often the orders that the papers report are found, each pair on one seed."""
    runs = {(arm, seed): one["accuracy"] for (arm, seed, size), one in cells.items() if size == images}

    def above(better: Sequence[str], worse: Sequence[str]) -> str:
        pairs = [(one, other, seed) for one, seed in runs if one in better for other in worse]
        return won((runs[one, seed][-1], runs[other, seed][-1]) for one, other, seed in pairs if (other, seed) in runs)

    chains = [run for (arm, _), run in runs.items() if arm in CHAINS]
    return {
        "students above their teachers": won((after, before) for run in chains for before, after in pairwise(run)),
        "consistency above pseudo-labels": above(CONSISTENCY, ["pseudo_label"]),
        "methods above supervised": above(UNLABELED, [BASE]),
        "fully supervised above methods": above(["fully supervised"], UNLABELED),
    }


def won(pairs: Iterable[tuple[float, float]]) -> str:
    """Of how many the first is larger."""
    larger = [first > second for first, second in pairs]
    return f"{sum(larger)} of {len(larger)}"


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def in_turn(runs: list[list[float]], written: str = ".1f") -> str:
    """The means over runs, round by round."""
    return " → ".join(format(statistics.mean(values), written) for values in zip(*runs, strict=True))


def main() -> None:
    """Computes what is missing, as far as the time goes, and reports what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of two arms, few images: no figures")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, default=Path(".selftrain-cifar10"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[4, 5, 6], help="0, 3 and 10 chose the settings")
    parser.add_argument("--images", type=int, default=256_000, help="that each network sees with a gradient")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each job")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after them")
    wanted = parser.parse_args()
    if wanted.quick:
        wanted.arms, wanted.seeds, wanted.images = ["fixmatch", ONE_ROUND], [0], 2_560
    cells = {} if wanted.quick else on_file()
    missing = [(arm, seed) for seed in wanted.seeds for arm in wanted.arms if (arm, seed, wanted.images) not in cells]
    how = wanted.images, wanted.data, wanted.workspace.absolute(), wanted.threads
    for arm, seed, result in compute(missing, wanted.jobs, time.monotonic() + 60 * wanted.minutes, *how):
        cells[arm, seed, wanted.images] = result
        print(arm, seed, result, file=sys.stderr, flush=True)
        if not wanted.quick:
            put_on_file(cells)
    about = {"images": wanted.images, "model": "fast_cnn"}
    if any((ONE_ROUND, seed, wanted.images) in cells for seed in wanted.seeds):
        publish("cifar10_ablations", table(cells, wanted.images, [CHAIN, *ABLATIONS], ONE_ROUND), about, wanted.quick)
    rows = table(cells, wanted.images, list(METHODS), BASE)
    best = max((row for row in rows if "supervised" not in row["arm"]), key=lambda row: row["accuracy %"], default=None)
    target = {"target": f"> {NOTEBOOK} %", "meets": best is not None and best["accuracy %"] > NOTEBOOK}
    about |= {"best": best["arm"] if best else None, **target, **orders(cells, wanted.images)}
    publish("cifar10", rows, about, wanted.quick)


if __name__ == "__main__":
    main()
