"""Temporal ensembling: Z / (1 - αᵗ), once an epoch, for each image."""

import math

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.temporal_ensembling import TemporalEnsembling
from selftrain.ssl_tasks.settings.methods import TemporalEnsemblingSettings
from tests.methods.trial import (
    TinyPools,
    Trial,
    batch_of,
    pixel_batch,
    pixel_student,
    pixels,
    problem_of,
    softmax,
)

ALPHA = 0.6
PROBS = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])


def memory(alpha: float = ALPHA) -> TemporalEnsembling:
    return TemporalEnsembling(TemporalEnsemblingSettings(alpha=alpha), problem_of(num_unlabeled=3))


def show(method: TemporalEnsembling, *epochs: torch.Tensor) -> None:
    """Epochs that show images 0 and 2."""
    for probs in epochs:
        method.remember(torch.tensor([0, 2]), probs)
        method.before_epoch(pixel_student(), TinyPools())


def test_the_first_target_is_the_first_prediction() -> None:
    method = memory()
    show(method, PROBS)
    targets, known = method.targets(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(targets[[0, 2]], PROBS)
    assert known.tolist() == [1, 0, 1]


def test_targets_are_the_bias_corrected_average_of_the_paper() -> None:
    method, epochs = memory(), [PROBS, PROBS.flip(0), PROBS.flip(1)]
    show(method, *epochs)
    average = np.zeros((2, 4))
    for probs in epochs:
        average = ALPHA * average + (1 - ALPHA) * probs.numpy()
    found, _ = method.targets(torch.tensor([0, 2]))
    assert found.numpy() == pytest.approx(average / (1 - ALPHA**3), rel=1e-5)
    assert found.sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_targets_move_once_an_epoch_only() -> None:
    method = memory()
    show(method, PROBS)
    before, _ = method.targets(torch.tensor([0]))
    method.remember(torch.tensor([0]), PROBS[1:])
    assert torch.equal(method.targets(torch.tensor([0]))[0], before)


def test_an_image_that_an_epoch_left_out_keeps_its_target() -> None:
    method = memory()
    show(method, PROBS)
    method.remember(torch.tensor([0]), PROBS[1:])
    method.before_epoch(pixel_student(), TinyPools())
    torch.testing.assert_close(method.targets(torch.tensor([2]))[0], PROBS[1:])
    assert method.epochs.tolist() == [2, 0, 1]


def test_an_image_seen_twice_in_an_epoch_counts_with_its_mean() -> None:
    method = memory()
    method.remember(torch.tensor([1, 1]), PROBS)
    method.before_epoch(pixel_student(), TinyPools())
    torch.testing.assert_close(method.targets(torch.tensor([1]))[0], PROBS.mean(0, keepdim=True))


def test_alpha_zero_is_the_last_epoch_alone() -> None:
    method = memory(alpha=0.0)
    show(method, PROBS, PROBS.flip(1))
    torch.testing.assert_close(method.targets(torch.tensor([0, 2]))[0], PROBS.flip(1))


def test_loss_is_the_formula_and_zero_weight_in_the_first_epoch() -> None:
    labeled, first, second = [[1.0, 0.0, 0.0, 0.0]], [[1.0, 0.0, 2.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]]
    trial = Trial(TemporalEnsemblingSettings(), student=pixel_student())
    supervised = -math.log(softmax(labeled)[0, 1])

    def total(logits: list[list[float]]) -> float:
        batch = pixel_batch([pixels(*labeled)], [1], [pixels(*logits)], [5])
        return trial.method.loss(trial.student, batch, 1.0).total.item()

    assert total(first) == pytest.approx(supervised)
    trial.method.before_epoch(trial.student, TinyPools())
    assert total(second) == pytest.approx(supervised + 30 * ((softmax(first) - softmax(second)) ** 2).mean())


def test_an_epoch_is_one_pass_over_the_unlabelled_images() -> None:
    assert memory().refresh_every() == 1
    assert TemporalEnsembling(TemporalEnsemblingSettings(), problem_of(num_unlabeled=17)).refresh_every() == 3


def test_targets_carry_no_gradient() -> None:
    trial = Trial(TemporalEnsemblingSettings())
    for number in range(4):
        trial.step(number, batch_of(trial.method.views, number))
    assert not any(buffer.requires_grad for buffer in trial.method.buffers())
