"""MixMatch: guesses, mixing, interleaving and the two losses."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from selftrain.ssl_tasks.methods.math import (
    dominant_lambda,
    draw_lambda,
    frozen_statistics,
    interleaved_forward,
    mix,
    mix_with_shuffled,
)
from selftrain.ssl_tasks.methods.mixmatch import MixMatch
from tests.methods.trial import CLASSES, PROBLEM, Trial, batch_of, gradients, settings_of, student_of

CPU = torch.device("cpu")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_mix_is_lambda_of_the_first_and_the_rest_of_the_second() -> None:
    own, other = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    mixed = mix(own, other, torch.tensor([0.75, 1.0]))
    assert torch.equal(mixed, torch.tensor([[0.75, 0.25], [1.0, 0.0]]))


def test_alpha_zero_and_tiny_alpha_mix_nothing() -> None:
    assert torch.equal(draw_lambda(0.0, 5, CPU), torch.ones(5))
    torch.manual_seed(0)
    assert (dominant_lambda(1e-5, 1000, CPU) > 0.999).float().mean() > 0.99


def test_lambda_is_beta_and_dominant_lambda_its_larger_half() -> None:
    torch.manual_seed(0)
    lam = draw_lambda(0.75, 100_000, CPU)
    assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * 0.75 + 1)), abs=0.002)
    dominant = dominant_lambda(0.75, 1000, CPU)
    assert dominant.min() >= 0.5


def test_images_and_targets_share_partner_and_lambda() -> None:
    torch.manual_seed(3)
    targets = torch.eye(6)
    images = targets.reshape(6, 1, 2, 3) * 10
    mixed, mixed_targets = mix_with_shuffled(images, targets, torch.full((6,), 0.7))
    assert torch.allclose(mixed.reshape(6, 6), mixed_targets * 10)
    assert not torch.equal(mixed_targets, targets)


def test_interleaved_batches_hold_their_share_of_every_kind_and_keep_the_order() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x[:, 0].tolist())
            return x * 2

    images = torch.arange(11.0)[:, None]
    assert torch.equal(interleaved_forward(Spy(), images, 3), images * 2)
    assert seen == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]


def test_only_the_first_interleaved_batch_moves_the_statistics() -> None:
    network = nn.BatchNorm1d(1, momentum=1.0, affine=False)
    images = torch.tensor([[0.0], [100.0], [2.0], [300.0]])
    out = interleaved_forward(network, images, 2)
    assert network.running_mean.item() == 1.0
    assert network.num_batches_tracked.item() == 1
    assert torch.allclose(out.flatten(), torch.tensor([-1.0, -1.0, 1.0, 1.0]), atol=1e-4)


def test_frozen_statistics_are_thawed_even_after_an_error() -> None:
    network = nn.BatchNorm1d(1)
    with pytest.raises(ValueError, match="2D or 3D"), frozen_statistics(network):
        network(torch.ones(4, 1, 1, 1, 1))
    with frozen_statistics(network):
        network(torch.ones(4, 1))
    assert network.track_running_stats
    assert network.num_batches_tracked.item() == 0


def test_the_guess_is_the_sharpened_mean_of_the_views() -> None:
    method = MixMatch(settings_of("mixmatch", temperature=0.5, views=2), PROBLEM)
    table = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).log_softmax(1)

    class Table(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return table[x.long()]

    guess = method.guess(Table(), (torch.tensor([0.0]), torch.tensor([1.0])))  # type: ignore[arg-type]
    mean = table.exp().numpy().mean(axis=0)
    expected = mean**2 / (mean**2).sum()
    np.testing.assert_allclose(guess[0].numpy(), expected, rtol=1e-5)
    assert not guess.requires_grad


def test_without_mixing_the_loss_is_cross_entropy_plus_squared_error_over_images_and_classes() -> None:
    trial = Trial(settings_of("mixmatch", alpha=0.0, weight=10.0, views=2), student=student_of(model="mlp"))
    batch = batch_of(trial.method.views)
    with torch.no_grad():
        labeled = trial.student(batch.labeled[0]).numpy()
        first, second = (trial.student(view).numpy() for view in batch.unlabeled)
    guess = (softmax(first) + softmax(second)) / 2
    guess = guess**2 / (guess**2).sum(axis=1, keepdims=True)
    cross_entropy = -np.log(softmax(labeled)[np.arange(4), batch.labels.numpy()]).mean()
    squared = np.mean([(softmax(view) - guess) ** 2 for view in (first, second)])
    losses = trial.method.loss(trial.student, batch, progress=1.0)
    assert losses.total.item() == pytest.approx(cross_entropy + 10 * squared, rel=1e-4)


def test_the_weight_rises_over_its_share_of_the_run() -> None:
    trial = Trial(settings_of("mixmatch", alpha=0.0, weight=8.0, ramp_up=0.5), student=student_of(model="mlp"))
    batch = batch_of(trial.method.views)
    added = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        losses = trial.method.loss(trial.student, batch, progress)
        added.append((losses.total - losses.logs["supervised"]).item() / losses.logs["unsupervised"].item())
    assert added == pytest.approx([0, 4, 8, 8], rel=1e-4, abs=1e-4)


def test_views_are_as_many_as_the_setting_says() -> None:
    assert MixMatch(settings_of("mixmatch", views=3), PROBLEM).views.unlabeled == ("weak",) * 3


def test_the_unlabelled_loss_alone_moves_the_student() -> None:
    trial = Trial(settings_of("mixmatch", alpha=0.0))
    batch = batch_of(trial.method.views)
    losses = trial.method.loss(trial.student, batch, 1.0)
    supervised = losses.logs["supervised"]
    (losses.total - supervised).backward()
    assert sum(grad.abs().sum().item() for grad in gradients(trial.student)) > 0
    assert losses.logs["gradient_share"] > 0


def test_labelled_weights_scale_the_labelled_loss() -> None:
    trial = Trial(settings_of("mixmatch", weight=0.0))
    batch = batch_of(trial.method.views)
    doubled = type(batch)(**{**vars(batch), "label_weights": torch.full((4,), 2.0)})
    totals = []
    for one in (batch, doubled):
        torch.manual_seed(0)
        totals.append(trial.method.loss(trial.student, one, 1.0).total.item())
    assert totals[1] == pytest.approx(2 * totals[0], rel=1e-5)


def test_sharpening_to_zero_temperature_is_the_hard_label() -> None:
    method = MixMatch(settings_of("mixmatch", temperature=1e-3, views=1), PROBLEM)
    student = student_of()
    guess = method.guess(student, (batch_of(method.views).unlabeled[0],))
    assert guess.shape[1] == CLASSES
    assert math.isclose(guess.amax(dim=1).min().item(), 1.0, abs_tol=1e-4)
