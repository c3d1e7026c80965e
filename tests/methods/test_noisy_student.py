"""Noisy Student: two means, soft labels as they are, smoothing on hard ones alone."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.noisy_student import smooth_hard
from selftrain.ssl_tasks.settings.methods import NoisyStudentSettings
from tests.methods.trial import Trial, pixel_batch, pixel_student, pixels, softmax

LABELED, PSEUDO = [[1.0, 0.0, 0.0, 0.0]], [[2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.5]]
TARGETS = [[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 1.0]]
BATCH = replace(
    pixel_batch([pixels(*LABELED)], [1], []), pseudo=(pixels(*PSEUDO),), pseudo_targets=torch.tensor(TARGETS)
)
LOG_PROBS = np.log(softmax(PSEUDO))


def losses(batch: Any = BATCH, **knobs: float) -> Any:
    trial = Trial(NoisyStudentSettings(**knobs), student=pixel_student())
    return trial.method.loss(trial.student, batch, 0.5)


def test_loss_is_the_sum_of_two_means() -> None:
    supervised = -math.log(softmax(LABELED)[0, 1])
    unsupervised = -(np.array(TARGETS) * LOG_PROBS).sum(1).mean()
    assert losses(label_smoothing=0.0).total.item() == pytest.approx(supervised + unsupervised)
    assert losses(label_smoothing=0.0, weight=4.0).total.item() == pytest.approx(supervised + 4 * unsupervised)


def test_smoothing_touches_hard_pseudo_labels_alone() -> None:
    found = smooth_hard(torch.tensor(TARGETS), 0.1)
    assert found[0].tolist() == pytest.approx(TARGETS[0])
    assert found[1].tolist() == pytest.approx([0.025, 0.025, 0.025, 0.925])


def test_smoothing_touches_labelled_images() -> None:
    target = 0.9 * np.eye(4)[1] + 0.025
    expected = -(target * np.log(softmax(LABELED)[0])).sum()
    assert losses(label_smoothing=0.1).logs["supervised"].item() == pytest.approx(expected)


@pytest.mark.parametrize("batch", [BATCH, replace(BATCH, pseudo=())])
def test_without_pseudo_labels_or_weight_it_is_supervised(batch: Any) -> None:
    weight = 0.0 if batch.pseudo else 1.0
    expected = -math.log(softmax(LABELED)[0, 1])
    assert losses(batch, weight=weight, label_smoothing=0.0).total.item() == pytest.approx(expected)


def test_the_largest_class_among_the_pseudo_labels_is_logged() -> None:
    assert losses().logs["pseudo_largest_class"].item() == 0.5
