"""Defines the arms that benchmarks/cifar10.py compares, each as a recipe whose networks have the same budget of
images."""

from pathlib import Path
from typing import Any

from selftrain.ssl_tasks.settings.run_config import RunConfig

MODEL = {"name": "fast_cnn", "width": 64}
TRAIN = {"optimizer": "adamw", "learning_rate": 0.004, "weight_decay": 0.02, "warmup_steps": 200}
TRAIN |= {"schedule": "cosine", "ema_decay": 0.995}
WIDTHS = (72, 80, 96)  # of the students
SELECT = {"threshold": 0.3, "balance": "equal"}

Settings = dict[str, Any]


def learner(images: int, labeled: int, ratio: int, views: int = 1, **sections: Any) -> Settings:
    """A network through which `images` pass with a gradient: a step, `labeled`, and `ratio` times as many unlabelled.

    Of the unlabelled ones the method may take several `views`.
    """
    steps = images // (labeled * (1 + ratio * views))
    budget = {"steps": steps, "batch_size": labeled, "evaluate_every": max(1, steps // 20)}
    unlabeled = {"unlabeled_ratio": ratio} if ratio else {}
    return {"model": MODEL, "train": TRAIN | budget | unlabeled, **sections}


def online(method: Settings, ratio: int = 0, labels: int | None = 100, views: int = 1) -> Settings:
    """One network that draws 128 images a step; `labels` of each class, or all."""
    return {
        "labels": labels,
        "teacher": lambda images: learner(images, 128 // (1 + ratio), ratio, views, method=method),
    }


# As many steps and labelled images as the methods with a ratio of 1 have: what their unlabelled half is worth.
HALF = {"labels": 100, "teacher": lambda images: learner(images // 2, 64, 0, method={"name": "supervised"})}
STRONG = online({"name": "supervised", "view": "strong"})
# Its weight rises over the whole run: within the paper's 1/64 of a short one, the model says one class of all images.
MIXMATCH = online({"name": "mixmatch", "ramp_up": 1.0}, ratio=1, views=2)


def longer(arm: Settings, times: int) -> Settings:
    """The same with more steps."""
    return arm | {"teacher": lambda images: arm["teacher"](times * images)}


def rounds(
    widths: tuple[int, ...] = WIDTHS,
    noise: bool = True,
    ratio: int = 1,
    teacher: Settings = STRONG,
    teacher_noise: bool = False,
    **select: Any,
) -> Settings:
    """A teacher, then students of these widths, with dropout and strong views unless without noise."""

    def student(images: int, width: int) -> Settings:
        model = MODEL | {"width": width, "dropout": 0.2 if noise else 0.0}
        quiet: Settings = {} if noise else {"augment": {"operations": 0, "cutout": 0.0}}
        method = {"name": "noisy_student", "weight": 1.0}
        return learner(images, 128 // (1 + ratio), ratio, method=method, **quiet) | {"model": model}

    def sections(images: int) -> list[Settings]:
        predict = {"temperature": "fit", "noise": teacher_noise}
        shared = {"predict": predict, "select": SELECT | select, "gate": {"enabled": False}}
        return [{**shared, "student": student(images, width)} for width in widths]

    return teacher | {"rounds": sections}


METHODS: dict[str, Settings] = {
    "supervised": online({"name": "supervised"}),
    "supervised, half the images": HALF,
    "supervised, strong views": STRONG,
    "pseudo_label": online({"name": "pseudo_label", "weight": 1.0}, ratio=1),
    "mean_teacher": online({"name": "mean_teacher", "decay": 0.995}, ratio=1),
    "mixmatch": MIXMATCH,
    "uda": online({"name": "uda"}, ratio=1),
    "fixmatch": online({"name": "fixmatch"}, ratio=1),
    "noisy_student, 3 rounds": rounds(),
    "noisy_student, 3 rounds from mixmatch": rounds(teacher=MIXMATCH),
    # What one network makes of all the images that a chain of four has.
    "mixmatch, 4 times the images": longer(MIXMATCH, 4),
    "noisy_student, 1 round from that mixmatch": rounds(WIDTHS[:1], teacher=longer(MIXMATCH, 4)),
    "supervised, 4,000 labels": online({"name": "supervised"}, labels=400),
    "fully supervised": online({"name": "supervised"}, labels=None),
}

# One round each, from the same teacher: what the students' noise, their size and their labels are worth.
ABLATIONS: dict[str, Settings] = {
    "1 round": rounds(WIDTHS[:1]),
    "1 round, student without noise": rounds(WIDTHS[:1], noise=False),
    "1 round, not balanced": rounds(WIDTHS[:1], balance="none"),
    "1 round, hard labels": rounds(WIDTHS[:1], soft=False),
    "1 round, student of the same size": rounds((64,)),
    "1 round, batch ratio 3": rounds(WIDTHS[:1], ratio=3),
    "1 round, teacher noised": rounds(WIDTHS[:1], teacher_noise=True),
    "1 round, threshold 0.8": rounds(WIDTHS[:1], threshold=0.8),
    "1 round, target_precision 0.8": rounds(WIDTHS[:1], threshold=None, target_precision=0.8),
    "2 rounds": rounds(WIDTHS[:2]),
}
ARMS = METHODS | ABLATIONS


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
