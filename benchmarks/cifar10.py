"""CIFAR-10 on a CPU: methods, Noisy Student and its ablations, with 1,000 labels and the same budget of images.

    python benchmarks/cifar10.py --data FOLDER [--arms NAME …] [--seeds 0 1 2] [--images 640000] [--minutes 60]

FOLDER has cifar10-train.parquet and cifar10-test.parquet: columns `image` (bytes of an encoded image) and `label_name`.
Every network sees as many images with a gradient; a run of several networks says so in its `images`. The best model on
1,000 validation images is tested once. Each finished cell is put on file at once, and is not computed again; what was
broken off goes on from its checkpoint in `--workspace`. So the whole, hours on two cores, is done in parts.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.methods_digits import Inline
from benchmarks.report import RESULTS, publish
from flows.self_training import self_training
from ssl_tasks.artifacts import Artifact, write_atomically
from ssl_tasks.config import RunConfig
from ssl_tasks.execute import Request

CELLS = RESULTS / "cifar10_cells.json"
NOTEBOOK = 62.77  # % that a published notebook of pseudo-labelling reaches with 1,000 labels and DenseNet-121
MODEL = {"name": "small_cnn", "width": 32}
TRAIN = {"learning_rate": 0.05, "schedule": "cosine", "ema_decay": 0.995}
STUDENT = {"name": "small_cnn", "dropout": 0.2}
SELECT = {"threshold": 0.3, "balance": "equal"}

Settings = dict[str, Any]


def learner(images: int, labeled: int, ratio: int, model: Settings = MODEL, **sections: Any) -> Settings:
    """A network that sees `images` with a gradient: `labeled` and `ratio` times as many without a label a step."""
    steps = images // (labeled * (1 + ratio))
    train = {**TRAIN, "steps": steps, "batch_size": labeled, "evaluate_every": max(1, steps // 20)}
    return {"model": model, "train": train | ({"unlabeled_ratio": ratio} if ratio else {}), **sections}


def online(method: Settings, labeled: int, ratio: int, labels: int | None = 100) -> Settings:
    """One network; `labels` of each class, or all."""
    return {"labels": labels, "teacher": lambda images: learner(images, labeled, ratio, method=method)}


def rounds(
    number: int = 3, widths: tuple[int, ...] = (40, 48, 56), noise: bool = True, ratio: int = 7, **changes: Any
) -> Settings:
    """Supervised, then so many students, each of its own width, with dropout and strong views unless without noise."""

    def student(images: int, width: int) -> Settings:
        model = STUDENT | {"width": width} | ({} if noise else {"dropout": 0.0})
        quiet: Settings = {} if noise else {"augment": {"operations": 0, "cutout": 0.0}}
        method = {"name": "noisy_student", "weight": 1.0}
        return learner(images, 256 // (1 + ratio), ratio, model, method=method, **quiet)

    def sections(images: int) -> list[Settings]:
        shared = {"predict": {"temperature": "fit"}, "select": SELECT | changes, "gate": {"enabled": False}}
        return [{**shared, "student": student(images, width)} for width in widths[:number]]

    return online({"name": "supervised"}, 128, 0) | {"rounds": sections}


ARMS: dict[str, Settings] = {
    "supervised": online({"name": "supervised"}, 128, 0),
    "supervised, 4,000 labels": online({"name": "supervised"}, 128, 0, labels=400),
    "fully supervised": online({"name": "supervised"}, 128, 0, labels=None),
    "pseudo_label": online({"name": "pseudo_label", "weight": 1.0}, 64, 3),
    "mean_teacher": online({"name": "mean_teacher", "decay": 0.995}, 64, 3),
    "mixmatch": online({"name": "mixmatch"}, 64, 1),
    "uda": online({"name": "uda"}, 32, 7),
    "fixmatch": online({"name": "fixmatch"}, 32, 7),
    "noisy_student": rounds(),
    "noisy_student, 1 round": rounds(1),
    "noisy_student, 2 rounds": rounds(2),
    "noisy_student, no noise": rounds(noise=False),
    "noisy_student, not balanced": rounds(balance="none"),
    "noisy_student, hard labels": rounds(soft=False),
    "noisy_student, same size": rounds(widths=(32, 32, 32)),
    "noisy_student, ratio 3": rounds(ratio=3),
    "noisy_student, target_precision 0.8": rounds(threshold=None, target_precision=0.8),
}


def config(arm: str, seed: int, images: int, data: Path) -> RunConfig:
    """The recipe of one cell."""
    said = ARMS[arm]
    source = {"name": "table", "path": data / "cifar10-train.parquet", "test_path": data / "cifar10-test.parquet"}
    split = {"labels_per_class": said["labels"], "validation": 1000, "seed": seed}
    return RunConfig.model_validate(
        {
            "seed": seed,
            "data": {"source": source | {"label": "label_name"}, "split": split},
            "teacher": said["teacher"](images),
            "rounds": said["rounds"](images) if "rounds" in said else [],
        }
    )


class Counting(Inline):
    """Answers inline, and counts what the networks saw and took, reused or not."""

    def __init__(self, workspace: Path, threads: int) -> None:
        super().__init__(workspace, threads)
        self.images, self.seconds = 0, 0.0

    def run(self, request: Request, round_number: int) -> Artifact:
        artifact = super().run(request, round_number)
        self.images += artifact.summary.get("images_seen", 0)
        self.seconds += artifact.manifest["seconds"]
        return artifact


def cell(arm: str, seed: int, images: int, data: Path, workspace: Path, threads: int) -> dict[str, Any]:
    """One run: accuracy of every model in turn, images and minutes."""
    answers = Counting(workspace, threads)
    summary = self_training(config(arm, seed, images, data), answers)
    tested = [100 * (line.test_accuracy or 0.0) for line in summary.rounds]
    precision = [line.pseudo_label_precision for line in summary.rounds if line.pseudo_label_precision is not None]
    return {"accuracy": tested, "precision": precision, "images": answers.images, "minutes": answers.seconds / 60}


def on_file() -> dict[str, dict[str, Any]]:
    """Cells of earlier calls, by their name."""
    return json.loads(CELLS.read_text()) if CELLS.exists() else {}


def table(cells: dict[str, dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """Mean and deviation of each arm over the seeds that it has."""
    rows = []
    for arm in ARMS:
        found = [one for name, one in cells.items() if name.split(" · ")[0] == arm and name.endswith(f"· {images}")]
        if found:
            last = [one["accuracy"][-1] for one in found]
            row: dict[str, Any] = {"arm": arm, "seeds": len(found), "accuracy %": statistics.mean(last)}
            row |= {"std": statistics.stdev(last) if len(last) > 1 else 0.0}
            row |= {"images": int(found[0]["images"]), "minutes": statistics.mean(one["minutes"] for one in found)}
            rows.append(row)
    return rows


def main() -> None:
    """Computes what is missing, as far as the time goes, and reports what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of two arms, few images: no figures")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, default=Path(".selftrain-cifar10"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=640_000, help="that each network sees with a gradient")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after them")
    wanted = parser.parse_args()
    started, cells = time.monotonic(), {} if wanted.quick else on_file()
    if wanted.quick:
        wanted.arms, wanted.seeds, wanted.images = ["fixmatch", "noisy_student, 1 round"], [0], 5_120
    for seed in wanted.seeds:
        for arm in wanted.arms:
            name = f"{arm} · {seed} · {wanted.images}"
            if name in cells or time.monotonic() - started > 60 * wanted.minutes:
                continue
            cells[name] = cell(arm, seed, wanted.images, wanted.data, wanted.workspace.absolute(), wanted.threads)
            print(name, cells[name], file=sys.stderr, flush=True)
            if not wanted.quick:
                write_atomically(CELLS, json.dumps(cells, indent=1) + "\n")
    rows = table(cells, wanted.images)
    best = max((row for row in rows if "supervised" not in row["arm"]), key=lambda row: row["accuracy %"], default=None)
    summary = {"images": wanted.images, "model": "small_cnn", "best": best["arm"] if best else None}
    summary |= {"target": f"> {NOTEBOOK} %", "meets": best is not None and best["accuracy %"] > NOTEBOOK}
    publish("cifar10", rows, summary, wanted.quick)


if __name__ == "__main__":
    main()
