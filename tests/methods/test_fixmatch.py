"""FixMatch: the mask, the hard label, the mean over all, alignment."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.fixmatch import masked_cross_entropy
from selftrain.ssl_tasks.methods.math import RunningMean
from selftrain.ssl_tasks.settings.methods import FixMatchSettings
from tests.methods.trial import Trial, batch_of, pixel_batch, pixel_student, pixels, problem_of, softmax, student_of

LABELED = [[1.0, 0.0, 0.0, 0.0]]
WEAK = [[5.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]  # confidence .98 and .48
STRONG = [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
BATCH = pixel_batch([pixels(*LABELED)], [1], [pixels(*WEAK), pixels(*STRONG)])
SUPERVISED = -math.log(softmax(LABELED)[0, 1])


def trial_of(**knobs: Any) -> Trial:
    return Trial(FixMatchSettings(**knobs), student=pixel_student())


def total(**knobs: Any) -> float:
    trial = trial_of(**knobs)
    return trial.method.loss(trial.student, BATCH, 0.5).total.item()


def test_loss_is_the_formula() -> None:
    only_first = -math.log(softmax(STRONG)[0, 0]) / 2  # zeros count in the mean
    assert total() == pytest.approx(SUPERVISED + only_first)
    assert total(weight=3.0) == pytest.approx(SUPERVISED + 3 * only_first)


def test_a_lower_threshold_lets_both_count() -> None:
    both = -np.log(softmax(STRONG)[[0, 1], [0, 1]]).mean()
    assert total(threshold=0.4) == pytest.approx(SUPERVISED + both)


def test_threshold_one_selects_nothing_even_where_softmax_saturates() -> None:
    batch = pixel_batch([pixels(*LABELED)], [1], [pixels([1000.0, 0.0, 0.0, 0.0]), pixels(STRONG[0])])
    trial = trial_of(threshold=1.0)
    losses = trial.method.loss(trial.student, batch, 0.5)
    assert losses.total.item() == pytest.approx(SUPERVISED)
    assert losses.logs["mask"] == 0


def test_temperature_makes_soft_targets_and_hard_ones_near_zero() -> None:
    sharp = softmax(np.array(WEAK) / 0.5)
    soft = -(sharp * np.log(softmax(STRONG))).sum(1)
    assert total(temperature=0.5) == pytest.approx(SUPERVISED + soft[0] / 2, rel=1e-5)
    assert total(temperature=1e-3) == pytest.approx(total(), rel=1e-5)


def test_the_weak_view_carries_no_gradient() -> None:
    trial = trial_of(threshold=0.0)
    labeled, (weak, strong) = BATCH.labeled[0], BATCH.unlabeled
    weak, strong = weak.clone().requires_grad_(), strong.clone().requires_grad_()
    trial.method.loss(trial.student, pixel_batch([labeled], [1], [weak, strong]), 0.5).total.backward()
    assert weak.grad is not None
    assert weak.grad.abs().max() == 0
    assert strong.grad is not None
    assert strong.grad.abs().min() > 0


def test_masked_cross_entropy_of_soft_targets_is_the_formula() -> None:
    probs, mask = torch.tensor(softmax(WEAK)), torch.tensor([0.0, 1.0])
    found = masked_cross_entropy(torch.tensor(STRONG, dtype=torch.float64), probs, mask, 1.0)
    assert found.item() == pytest.approx(-(softmax(WEAK)[1] * np.log(softmax(STRONG)[1])).sum() / 2)


def test_a_separate_weak_pass_changes_nothing_without_batch_norm() -> None:
    for model in ("mlp", None):
        totals = []
        for separate in (False, True):
            trial = Trial(
                FixMatchSettings(threshold=0.3, separate_weak_forward=separate),
                student=student_of(model=model),
            )
            totals.append(trial.method.loss(trial.student, batch_of(trial.method.views), 0.5).total.item())
        assert (totals[0] == pytest.approx(totals[1], rel=1e-5)) is (model == "mlp")


def test_alignment_does_nothing_where_the_mean_prediction_is_the_prior() -> None:
    probs = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    torch.testing.assert_close(RunningMean((0.5, 0.5)).align(probs), probs)


def test_alignment_divides_by_the_mean_of_the_last_batches() -> None:
    guesses = RunningMean((0.5, 0.5), batches=2)
    for share in (0.1, 0.6, 0.8):
        found = guesses.align(torch.tensor([[share, 1 - share]]))
    unscaled = np.array([0.8 / 0.7, 0.2 / 0.3])  # the mean of the last two batches is .7
    assert found[0].tolist() == pytest.approx(unscaled / unscaled.sum())


def test_alignment_changes_which_images_count() -> None:
    prior = problem_of(class_prior=(0.0, 1.0, 0.0, 0.0))
    trial = Trial(FixMatchSettings(distribution_alignment=True), prior, pixel_student())
    losses = trial.method.loss(trial.student, BATCH, 0.5)
    # All mass goes to class 1, so both images count with that label.
    both = -np.log(softmax(STRONG)[[0, 1], [1, 1]]).mean()
    assert losses.total.item() == pytest.approx(SUPERVISED + both)
