"""Π-model: two noisy predictions for one image."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from selftrain.ssl_tasks.methods.pi_model import disagreement
from selftrain.ssl_tasks.settings.methods import PiModelSettings
from tests.methods.trial import Trial, pixel_batch, pixel_student, pixels, softmax

LABELED = [[1.0, 0.0, 0.0, 0.0]]
FIRST, SECOND = [[1.0, 0.0, 2.0, 0.0], [0.0, 2.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
BATCH = pixel_batch([pixels(*LABELED)], [1], [pixels(*FIRST), pixels(*SECOND)])
SUPERVISED = -math.log(softmax(LABELED)[0, 1])


def total(progress: float, **knobs: Any) -> float:
    trial = Trial(PiModelSettings(**knobs), student=pixel_student())
    return trial.method.loss(trial.student, BATCH, progress).total.item()


def test_loss_is_the_formula() -> None:
    difference = ((softmax(FIRST) - softmax(SECOND)) ** 2).mean()
    assert total(1.0) == pytest.approx(SUPERVISED + 100 * difference)
    assert total(0.2, weight=10.0, ramp_up=0.4) == pytest.approx(SUPERVISED + 10 * math.exp(-1.25) * difference)


def test_the_weight_is_zero_at_the_first_step() -> None:
    assert total(0.0) == pytest.approx(SUPERVISED)


def test_both_predictions_carry_a_gradient_and_against_each_other() -> None:
    first, second = (torch.tensor(one, requires_grad=True) for one in (FIRST, SECOND))
    disagreement(first, second).backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.abs().max() > 0
    assert second.grad.abs().max() > 0
    assert disagreement(first, first).item() == 0


def test_the_baselines_weight_rises_linearly() -> None:
    difference = ((softmax(FIRST) - softmax(SECOND)) ** 2).mean()
    for progress, share in ((0.1, 0.25), (0.2, 0.5), (0.4, 1.0), (0.9, 1.0)):
        found = total(progress, weight=20.0, ramp_up=0.4, ramp="linear")
        assert found == pytest.approx(SUPERVISED + 20 * share * difference)


def test_a_target_without_a_gradient_takes_half_of_the_gradient_in_the_mean() -> None:
    # By symmetry: with the views swapped, the other half. Together they are the gradient through both.
    def gradient(views: list[torch.Tensor], **knobs: bool) -> torch.Tensor:
        trial = Trial(PiModelSettings(weight=20.0, ramp_up=0.0, **knobs), student=pixel_student())
        batch = pixel_batch([pixels(*LABELED)], [1], views)
        trial.method.loss(trial.student, batch, 1.0).total.backward()
        assert trial.student.head.weight.grad is not None
        supervised = pixel_student()
        F.cross_entropy(supervised(pixels(*LABELED)), torch.tensor([1])).backward()
        return trial.student.head.weight.grad - supervised.head.weight.grad

    views = [pixels(*FIRST), pixels(*SECOND)]
    halves = [gradient(one, target_gradient=False) for one in (views, views[::-1])]
    assert torch.allclose(halves[0] + halves[1], gradient(views), atol=1e-6)
    assert min(half.abs().max() for half in halves) > 0.1
