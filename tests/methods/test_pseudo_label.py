"""Lee's pseudo-label: own argmax, ramped up."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from selftrain.ssl_tasks.settings.methods import PseudoLabelSettings
from tests.methods.trial import Trial, pixel_batch, pixel_student, pixels, softmax

LABELED, UNLABELED = [[1.0, 0.0, 0.0, 0.0]], [[2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.5]]
BATCH = pixel_batch([pixels(*LABELED)], [1], [pixels(*UNLABELED)])


def total(progress: float, **knobs: Any) -> float:
    trial = Trial(PseudoLabelSettings(**knobs), student=pixel_student())
    return trial.method.loss(trial.student, BATCH, progress).total.item()


def test_loss_is_the_formula() -> None:
    supervised = -math.log(softmax(LABELED)[0, 1])
    unsupervised = -np.log(softmax(UNLABELED).max(1)).mean()
    assert total(1.0) == pytest.approx(supervised + 3 * unsupervised)
    assert total(7 / 12) == pytest.approx(supervised + 1.5 * unsupervised)


def test_nothing_is_learned_from_pseudo_labels_before_t1() -> None:
    assert total(1 / 6) == pytest.approx(-math.log(softmax(LABELED)[0, 1]))


def test_a_threshold_drops_images_but_divides_by_all() -> None:
    sure, unsure = softmax(UNLABELED).max(1)
    found = total(1.0, threshold=float(sure + unsure) / 2)
    assert found == pytest.approx(-math.log(softmax(LABELED)[0, 1]) + 3 * -math.log(sure) / 2)


def test_threshold_one_selects_nothing() -> None:
    assert total(1.0, threshold=1.0) == pytest.approx(-math.log(softmax(LABELED)[0, 1]))


def test_the_label_carries_no_gradient() -> None:
    trial = Trial(PseudoLabelSettings(ramp_start=0.0, ramp_end=0.0), student=pixel_student())
    trial.method.loss(trial.student, BATCH, 1.0).total.backward()
    grad = torch.zeros(4)
    grad += torch.tensor(softmax(LABELED)[0]) - torch.eye(4)[1]
    grad += 3 * (torch.tensor(softmax(UNLABELED)) - torch.eye(4)[[0, 3]]).mean(0)
    torch.testing.assert_close(trial.student.head.bias.grad, grad.float())


def test_a_ramp_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValidationError, match="swap them"):
        PseudoLabelSettings(ramp_start=0.5, ramp_end=0.2)


def test_sigmoid_units_have_lees_loss() -> None:
    def bce(logits: list[list[float]], labels: list[int]) -> float:
        f, y = 1 / (1 + np.exp(-np.array(logits))), np.eye(4)[labels]
        return float(-(y * np.log(f) + (1 - y) * np.log(1 - f)).sum(1).mean())

    supervised, unsupervised = bce(LABELED, [1]), bce(UNLABELED, [0, 3])
    assert total(1.0, units="sigmoid") == pytest.approx(supervised + 3 * unsupervised)
    assert total(7 / 12, units="sigmoid") == pytest.approx(supervised + 1.5 * unsupervised)
    assert total(1.0, units="sigmoid", weight=0.0) == pytest.approx(supervised)
    sure = 1 / (1 + math.exp(-2.0))  # the largest output of the first image; of the second it is .62
    half = np.array([bce([UNLABELED[0]], [0]), 0.0]).mean()
    assert total(1.0, units="sigmoid", threshold=sure - 1e-6) == pytest.approx(supervised + 3 * half)
