"""Π-model: two noisy predictions for one image."""

import math

import pytest
import torch

from ssl_tasks.methods.pi_model import disagreement
from ssl_tasks.methods.settings import PiModelSettings
from tests.methods.trial import Trial, pixel_batch, pixel_student, pixels, softmax

LABELED = [[1.0, 0.0, 0.0, 0.0]]
FIRST, SECOND = [[1.0, 0.0, 2.0, 0.0], [0.0, 2.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
BATCH = pixel_batch([pixels(*LABELED)], [1], [pixels(*FIRST), pixels(*SECOND)])
SUPERVISED = -math.log(softmax(LABELED)[0, 1])


def total(progress: float, **knobs: float) -> float:
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
