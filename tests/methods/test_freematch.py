"""FreeMatch: averages that take in the batch before the mask, and the fairness loss."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.freematch import FreeMatch, fairness_loss
from selftrain.ssl_tasks.settings.methods import FixMatchSettings, FreeMatchSettings
from tests.methods.trial import Trial, batch_of, pixel_batch, pixel_student, pixels, softmax, student_of

WEAK = [[5.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
STRONG = [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
BATCH = pixel_batch([pixels(WEAK[0])], [0], [pixels(*WEAK), pixels(*STRONG)])


def freematch(**knobs: Any) -> tuple[Trial, FreeMatch]:
    trial = Trial(FreeMatchSettings(**knobs), student=pixel_student())
    assert isinstance(trial.method, FreeMatch)
    return trial, trial.method


def fairness(probs: np.ndarray, average: np.ndarray, histogram_average: np.ndarray) -> float:
    """The official formula over rows that all count, in numpy."""
    histogram = np.bincount(probs.argmax(1), minlength=4) / len(probs)

    def scaled(p: np.ndarray, h: np.ndarray) -> np.ndarray:
        ratio = p * np.divide(1, h, out=np.zeros(4), where=h > 0)
        return ratio / ratio.sum()

    return float((scaled(average, histogram_average) * np.log(scaled(probs.mean(0), histogram) + 1e-12)).sum())


def test_everything_starts_at_one_over_k() -> None:
    _, method = freematch()
    assert method.global_threshold.item() == 0.25
    assert method.probs_average.tolist() == method.histogram_average.tolist() == [0.25] * 4


def test_averages_move_by_the_batch() -> None:
    _, method = freematch(decay=0.9)
    probs = softmax(WEAK)
    method.update(torch.tensor(probs).float())
    assert method.global_threshold.item() == pytest.approx(0.9 * 0.25 + 0.1 * probs.max(1).mean())
    assert method.probs_average.tolist() == pytest.approx(0.9 * 0.25 + 0.1 * probs.mean(0))
    assert method.histogram_average.tolist() == pytest.approx(0.9 * 0.25 + 0.1 * np.array([0.5, 0.5, 0, 0]))


def test_the_quantile_and_the_clip_replace_and_bound_the_mean() -> None:
    probs = torch.tensor(softmax(WEAK)).float()
    _, method = freematch(decay=0.0, quantile=1.0)
    method.update(probs)
    assert method.global_threshold.item() == pytest.approx(probs.max().item())
    _, clipped = freematch(decay=0.0, clip=0.6)
    clipped.update(probs)
    assert clipped.global_threshold.item() == pytest.approx(0.6)


def test_the_mask_comes_after_the_update_and_scales_with_the_class() -> None:
    trial, method = freematch(decay=0.0)
    losses = method.loss(trial.student, BATCH, 0.5)
    probs = softmax(WEAK)
    thresholds = probs.max(1).mean() * probs.mean(0) / probs.mean(0).max()
    assert thresholds[0] <= probs[0, 0]
    assert thresholds[1] <= probs[1, 1] < probs.max(1).mean()  # a global threshold alone would drop the second
    assert losses.logs["mask"] == 1


def test_loss_is_the_formula() -> None:
    trial, method = freematch(decay=0.0, weight=2.0, fairness_weight=0.5)
    losses = method.loss(trial.student, BATCH, 0.5)
    histogram = np.array([0.5, 0.5, 0, 0])
    unsupervised = -np.log(softmax(STRONG)[[0, 1], [0, 1]]).mean()
    expected = -math.log(softmax(WEAK)[0, 0]) + 2 * unsupervised
    assert losses.total.item() == pytest.approx(
        expected + 0.5 * fairness(softmax(STRONG), softmax(WEAK).mean(0), histogram), rel=1e-4
    )


def test_fairness_is_the_formula_over_the_rows_that_count() -> None:
    logits, average = np.random.default_rng(0).normal(size=(6, 4)), np.array([0.4, 0.3, 0.2, 0.1])
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    found = fairness_loss(torch.tensor(logits), mask, torch.tensor(average), torch.tensor(average[::-1].copy()))
    assert found.item() == pytest.approx(fairness(softmax(logits)[[0, 1, 3, 5]], average, average[::-1]), rel=1e-5)


def test_fairness_is_zero_without_a_gradient_where_nothing_counts() -> None:
    logits, uniform = torch.randn(3, 4, requires_grad=True), torch.full((4,), 0.25)
    loss = fairness_loss(logits, torch.zeros(3), uniform, uniform)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_fairness_reaches_the_strong_views_that_count_alone() -> None:
    logits, uniform = torch.randn(3, 4, requires_grad=True), torch.full((4,), 0.25)
    fairness_loss(logits, torch.tensor([1.0, 1.0, 0.0]), uniform, uniform).backward()
    assert logits.grad is not None
    assert logits.grad[:2].abs().max() > 0
    assert logits.grad[2].abs().max() == 0


def test_with_frozen_uniform_averages_it_is_fixmatch_at_one_over_k() -> None:
    free = Trial(FreeMatchSettings(decay=1.0, fairness_weight=0.0), student=student_of())
    fix = Trial(FixMatchSettings(threshold=0.25), student=student_of())
    batch = batch_of(fix.method.views)
    assert torch.equal(free.method.loss(free.student, batch, 0.5).total, fix.method.loss(fix.student, batch, 0.5).total)
