"""SoftMatch: a truncated Gaussian of the confidence; alignment touches the weights alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.softmatch import SoftMatch, truncated_gaussian
from selftrain.ssl_tasks.settings.methods import SoftMatchSettings
from tests.methods.trial import Trial, pixel_batch, pixel_student, pixels, softmax

WEAK = [[5.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
STRONG = [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
BATCH = pixel_batch([pixels(WEAK[0])], [0], [pixels(*WEAK), pixels(*STRONG)])
SUPERVISED = -math.log(softmax(WEAK)[0, 0])


def softmatch(**knobs: Any) -> tuple[Trial, SoftMatch]:
    trial = Trial(SoftMatchSettings(**knobs), student=pixel_student())
    assert isinstance(trial.method, SoftMatch)
    return trial, trial.method


def test_weights_are_one_above_the_mean_and_gaussian_below() -> None:
    found = truncated_gaussian(torch.tensor([0.9, 0.5, 0.4]), torch.tensor(0.5), torch.tensor(0.04), 2.0)
    assert found.tolist() == pytest.approx([1, 1, math.exp(-(0.1**2) / (2 * 0.04 / 4))])


def test_averages_start_at_one_over_k_and_one_and_take_in_the_batch_first() -> None:
    _, method = softmatch(decay=0.9, uniform_alignment=False)
    assert (method.mean.item(), method.variance.item()) == (0.25, 1)
    confidence = softmax(WEAK).max(1)
    mean, variance = 0.9 * 0.25 + 0.1 * confidence.mean(), 0.9 + 0.1 * confidence.var(ddof=1)
    found = method.weights(torch.tensor(softmax(WEAK)).float())
    assert (method.mean.item(), method.variance.item()) == pytest.approx((mean, variance))
    assert found.tolist() == pytest.approx(np.exp(-(np.minimum(confidence - mean, 0) ** 2) / (2 * variance / 4)))


def test_loss_is_the_formula() -> None:
    trial, method = softmatch(decay=0.0, weight=2.0, uniform_alignment=False)
    confidence = softmax(WEAK).max(1)
    weights = np.exp(-(np.minimum(confidence - confidence.mean(), 0) ** 2) / (2 * confidence.var(ddof=1) / 4))
    unsupervised = (weights * -np.log(softmax(STRONG)[[0, 1], [0, 1]])).mean()
    assert weights[0] == 1 > weights[1]
    assert method.loss(trial.student, BATCH, 0.5).total.item() == pytest.approx(SUPERVISED + 2 * unsupervised)


def test_uniform_alignment_changes_weights_and_never_labels() -> None:
    # Aligned by a running mean that is nearly all class 0, the first image would become class 1's.
    trial, method = softmatch(decay=1.0)
    method.guesses.copy_(torch.tensor([0.997, 0.001, 0.001, 0.001]))
    method.mean.fill_(0.9)
    method.variance.fill_(0.1)
    aligned = softmax(WEAK) / np.array([0.997, 0.001, 0.001, 0.001])
    aligned /= aligned.sum(1, keepdims=True)
    assert aligned[0].argmax() != 0
    weights = np.exp(-(np.minimum(aligned.max(1) - 0.9, 0) ** 2) / (2 * 0.1 / 4))
    unsupervised = (weights * -np.log(softmax(STRONG)[[0, 1], [0, 1]])).mean()
    found = method.loss(trial.student, BATCH, 0.5).total.item()
    assert found == pytest.approx(SUPERVISED + unsupervised, rel=1e-4)


def test_the_running_mean_of_guesses_starts_at_the_first_batch() -> None:
    _, method = softmatch(decay=0.9)
    method.weights(torch.tensor(softmax(WEAK)).float())
    assert method.guesses.tolist() == pytest.approx(softmax(WEAK).mean(0))
    method.weights(torch.tensor(softmax(STRONG)).float())
    assert method.guesses.tolist() == pytest.approx(0.9 * softmax(WEAK).mean(0) + 0.1 * softmax(STRONG).mean(0))


def test_weights_and_labels_carry_no_gradient() -> None:
    trial, method = softmatch()
    weak, strong = (view.clone().requires_grad_() for view in BATCH.unlabeled)
    method.loss(trial.student, pixel_batch(BATCH.labeled, [0], [weak, strong]), 0.5).total.backward()
    assert weak.grad is not None
    assert weak.grad.abs().max() == 0
    assert strong.grad is not None
    assert strong.grad.abs().max() > 0
