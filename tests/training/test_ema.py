"""The moving average: its warm-up by hand, and what becomes of buffers."""

import pytest
import torch
from torch import nn

from selftrain.ssl_tasks.training.state import frozen_copy, move_average, warmed_decay


def test_warm_up_starts_at_one_half_and_ends_at_the_decay() -> None:
    assert [warmed_decay(0.9, t, True) for t in (1, 2, 3, 9, 10, 1000)] == pytest.approx(
        [1 / 2, 2 / 3, 3 / 4, 0.9, 0.9, 0.9]
    )


def test_without_warm_up_the_decay_is_constant() -> None:
    assert warmed_decay(0.9, 1, False) == 0.9


def test_average_is_the_weighted_mean_of_the_parameters() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    average = frozen_copy(network)
    nn.init.constant_(network.weight, 3.0)
    move_average(average, network, 0.75)
    assert average.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 3)


def test_warmed_average_of_the_first_weights_is_their_plain_mean() -> None:
    network, values = nn.Linear(1, 1, bias=False), [4.0, 1.0, 7.0, 2.0]
    nn.init.constant_(network.weight, values[0])
    average = frozen_copy(network)
    for t, value in enumerate(values[1:], start=1):
        nn.init.constant_(network.weight, value)
        move_average(average, network, warmed_decay(0.999, t, True))
    assert average.weight.item() == pytest.approx(sum(values) / 4)


@pytest.mark.parametrize(("buffers", "expected"), [("copy", 8.0), ("average", 0.5 * 0 + 0.5 * 8.0)])
def test_buffers_are_copied_or_averaged(buffers: str, expected: float) -> None:
    network = nn.BatchNorm1d(1)
    average = frozen_copy(network)
    assert network.running_mean is not None
    assert network.num_batches_tracked is not None
    network.running_mean.fill_(8.0)
    network.num_batches_tracked.fill_(5)
    move_average(average, network, 0.5, buffers)  # type: ignore[arg-type]
    assert (average.running_mean.item(), average.num_batches_tracked.item()) == (expected, 5)


def test_average_takes_no_gradient_and_stays_in_evaluation_mode() -> None:
    average = frozen_copy(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    assert not average.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert torch.is_grad_enabled()
