"""The study of benchmarks/cifar10.py runs for hours: what can be wrong in it is found before."""

import json
from pathlib import Path

import pytest

from benchmarks import cifar10
from benchmarks.report import RESULTS
from selftrain.ssl_tasks.settings.run_config import LearnerSettings


def images_a_step(learner: LearnerSettings) -> int:
    """With a gradient."""
    if learner.method.name == "supervised":
        return learner.train.batch_size
    views = learner.method.views if learner.method.name == "mixmatch" else 1
    return learner.train.batch_size * (1 + learner.train.unlabeled_ratio * views)


@pytest.mark.parametrize("arm", cifar10.ARMS)
def test_every_network_of_every_arm_sees_the_same_number_of_images(arm: str, tmp_path: Path) -> None:
    config = cifar10.config(arm, 3, 256_000, tmp_path)
    first = 128_000 if "half" in arm else 1_024_000 if "4 times" in arm or "that mixmatch" in arm else 256_000
    learners = [(config.teacher, first), *((one.student, 256_000) for one in config.rounds)]
    for learner, budget in learners:
        assert learner.train.steps == budget // images_a_step(learner)
    assert (config.seed, config.data.split.seed) == (3, 3)


def test_an_arm_is_compared_with_supervised_learning_on_the_same_seeds() -> None:
    def cell(*accuracy: float) -> dict[str, object]:
        return {
            "accuracy": list(accuracy),
            "precision": [0.5] * (len(accuracy) - 1),
            "selected": [7] * (len(accuracy) - 1),
            "images": 9,
            "CPU minutes": None,
        }

    cells = {("supervised", 0, 9): cell(50.0), ("supervised", 1, 9): cell(40.0), ("supervised", 0, 7): cell(1.0)}
    cells |= {("noisy_student, 3 rounds", 1, 9): cell(42.0, 44.0), ("noisy_student, 3 rounds", 2, 9): cell(60.0, 70.0)}
    supervised, students = cifar10.table(cells, 9, list(cifar10.METHODS), "supervised")
    assert (supervised["accuracy %"], supervised["above supervised"]) == (45.0, 0.0)
    assert (students["seeds"], students["accuracy %"], students["above supervised"]) == (2, 57.0, 4.0)
    assert (students["models in turn"], students["pseudo-labels"]) == ("51.0 → 57.0", "7")


def test_the_orders_of_the_papers_are_counted_on_the_same_seeds() -> None:
    def cell(*accuracy: float) -> dict[str, object]:
        return {"accuracy": list(accuracy)}

    cells = {("supervised", seed, 9): cell(50.0) for seed in (0, 1)} | {("fully supervised", 0, 9): cell(80.0)}
    cells |= {("pseudo_label", 0, 9): cell(50.0), ("pseudo_label", 1, 9): cell(51.0), ("fixmatch", 0, 9): cell(55.0)}
    cells |= {("noisy_student, 3 rounds", 0, 9): cell(52.0, 54.0, 53.0, 56.0), ("fixmatch", 0, 7): cell(1.0)}
    assert cifar10.orders(cells, 9) == {
        "students above their teachers": "2 of 3",
        "consistency above pseudo-labels": "1 of 1",
        "methods above supervised": "3 of 4",
        "fully supervised above methods": "3 of 3",
    }


def test_the_cells_on_file_make_the_tables_on_file() -> None:
    cells = cifar10.on_file()
    rows = cifar10.table(cells, 256_000, list(cifar10.METHODS), cifar10.BASE)
    assert json.loads((RESULTS / "cifar10.json").read_text())["rows"] == rows
    rows = cifar10.table(cells, 256_000, [cifar10.CHAIN, *cifar10.ABLATIONS], cifar10.ONE_ROUND)
    assert json.loads((RESULTS / "cifar10_ablations.json").read_text())["rows"] == rows
