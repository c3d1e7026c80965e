"""CTAugment in a training run: it learns beside the method, and neither workers nor a stop change a bit."""

from pathlib import Path

import numpy as np
import torch

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.views.ctaugment import REFRESH, Policy
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.training.loop import take_step
from selftrain.ssl_tasks.training.run import TrainingRun, build_run
from tests.training.small_runs import TRAIN, train_in, weights_of

STEPS = 3 * REFRESH


def learner(strong: str = "ctaugment") -> LearnerSettings:
    return LearnerSettings.model_validate(
        {
            "model": {"name": "mlp", "width": 16},
            "method": {"name": "fixmatch"},
            "train": {**TRAIN, "steps": STEPS, "evaluate_every": STEPS},
            "augment": {"strong": strong},
        }
    )


def run_of(dataset: Artifact, here: Path, strong: str = "ctaugment") -> TrainingRun:
    opened = Dataset.open(dataset, here / "cache", RuntimeSettings(threads=1))
    return build_run(learner(strong), opened, 0, torch.device("cpu"))


def policy_of(run: TrainingRun) -> Policy:
    assert run.policy is not None
    return run.policy


def advance(run: TrainingRun, steps: int, workers: int = 0) -> TrainingRun:
    batches = run.batches(workers)
    for _ in range(steps):
        take_step(run, next(batches))
    return run


def test_rates_move_for_what_was_tried_and_stay_between_zero_and_one(dataset: Artifact, here: Path) -> None:
    rates = policy_of(advance(run_of(dataset, here), 4)).rates
    assert 0 < (rates < 1).sum() <= 4 * 8 * 2  # steps, probes, operations of each
    assert rates.min() > 0.9**8


def test_a_run_without_learnt_augmentation_has_no_policy(dataset: Artifact, here: Path) -> None:
    run = run_of(dataset, here, "randaugment")
    assert run.policy is None
    assert advance(run, 1).state.step == 1


def test_a_restored_run_continues_bit_for_bit(dataset: Artifact, here: Path) -> None:
    whole = advance(run_of(dataset, here), STEPS, workers=1)
    half = advance(run_of(dataset, here), 40)
    rest = run_of(dataset, here)
    rest.state.restore(half.state.snapshot())
    advance(rest, STEPS - 40)
    ends = whole.state.snapshot().tensors, rest.state.snapshot().tensors
    assert "method/augmentation.rates" in ends[0]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_the_stage_trains_with_it_whatever_the_workers(dataset: Artifact, here: Path) -> None:
    models = [train_in(here / str(workers), learner(), {"dataset": dataset}, workers=workers) for workers in (0, 2)]
    one, other = (weights_of(model) for model in models)
    assert all(np.array_equal(weight, other[name]) for name, weight in one.items())
