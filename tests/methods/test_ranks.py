"""Two processes with half of each batch do what one process does with the whole: losses, masks and memories alike.

Where a method draws random numbers, each rank draws its own: here they are made of the images, or mixing is off. The
network has no batch norm. SimCLR, whose projection has one, has such a test of its own in `test_simclr.py`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.execution.distributed import average_gradients, rank, world
from selftrain.ssl_tasks.methods.table import METHODS
from tests.methods.trial import PROBLEM, TinyPools, Trial, batch_of, settings_of, student_of
from tests.warm import call

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("supervised", {}),
    "vat": ("vat", {"epsilon": 1.0, "entropy_weight": 0.5}),
    "ict": ("ict", {"alpha": 0.0, "labeled_alpha": 0.0}),
    "meta_pseudo_labels": (
        "meta_pseudo_labels",
        {"uda_threshold": 0.3, "uda_ramp_up": 0.5, "student_wait": 0.0, "finetune": 0.3},
    ),
    "pseudo_label": ("pseudo_label", {"ramp_start": 0.0, "threshold": 0.6}),
    "fixmatch": ("fixmatch", {"threshold": 0.5, "distribution_alignment": True}),
    "mean_teacher": ("mean_teacher", {}),
    "pi_model": ("pi_model", {}),
    "temporal_ensembling": ("temporal_ensembling", {}),
    "uda": ("uda", {"threshold": 0.4, "tsa": "linear", "in_domain_share": 0.5}),
    "flexmatch": ("flexmatch", {"threshold": 0.7}),
    "freematch": ("freematch", {"decay": 0.5, "fairness_weight": 0.1}),
    "freematch by quantile": ("freematch", {"decay": 0.5, "quantile": 0.8}),
    "softmatch": ("softmatch", {"decay": 0.5}),
    "noisy_student": ("noisy_student", {}),
    "mixmatch": ("mixmatch", {"alpha": 0.0, "ramp_up": 0.0}),
    "remixmatch": ("remixmatch", {"alpha": 0.0, "views": 2, "rotation_weight": 0.0, "ramp_up": 0.0}),
    "confirmation_bias": ("confirmation_bias", {"alpha": 0.0, "warmup": 0.0}),
    "label_propagation": ("label_propagation", {"warmup": 0.0, "neighbors": 3}),
    "dividemix": ("dividemix", {"alpha": 0.0, "warmup": 0.0, "ramp_up": 0.0}),
    "distillation": ("distillation", {"weight": 0.5}),
}


def share_of(batch: Batch) -> Batch:
    """This rank's rows."""
    return batch.map(lambda rows: rows[rank() :: world()]) if world() > 1 else batch


def train(case: str) -> dict[str, Tensor]:
    """Six steps; what they leave."""
    name, knobs = CASES[case]
    trial = Trial(settings_of(name, **knobs), student=student_of(model="mlp", sharpness=2.0))
    for number in range(PROBLEM.steps):
        every = trial.method.refresh_every()
        if every is not None and number % every == 0:
            trial.method.before_epoch(trial.student, TinyPools())
        batch = share_of(replace(batch_of(trial.method.views, number), unlabeled_truth=torch.empty(0)))
        with mock.patch("torch.randn_like", made_of):
            take_step(trial, batch, number / (PROBLEM.steps - 1))
        trial.method.after_step(trial.student)
    return trial.state()


def made_of(images: Tensor) -> Tensor:
    """Numbers that look random and are the same on every rank: of each image's own."""
    return torch.sin(1e4 * images)


def take_step(trial: Trial, batch: Batch, progress: float) -> None:
    """As the engine does."""
    if (own_step := getattr(trial.method, "train_step", None)) is not None:
        own_step(trial.student, trial.optimizer, batch, progress)
        return
    trial.optimizer.zero_grad(set_to_none=True)
    trial.method.loss(trial.student, batch, progress).total.backward()
    average_gradients([*trial.student.parameters(), *trial.method.parameters()])
    trial.optimizer.step()


def work(number: int, folder: Path) -> None:
    """One of two ranks; rank 0 writes what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    found = {case: train(case) for case in CASES}
    if number == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Every case, by two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    for process in [call(work, number, folder) for number in range(2)]:
        said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    return torch.load(folder / "found.pt", weights_only=True)


def test_no_method_is_left_out() -> None:
    assert {name for name, _ in CASES.values()} | {"simclr"} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_agree_with_one(case: str, of_two: dict[str, dict[str, Tensor]]) -> None:
    alone = train(case)
    assert alone.keys() == of_two[case].keys()
    for name, value in alone.items():
        torch.testing.assert_close(
            of_two[case][name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
