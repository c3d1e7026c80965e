"""Learning rates by hand, and who is decayed."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.training.state import build_optimizer, learning_rate, parameter_groups, set_rates


def rates(steps: list[int], **settings: object) -> list[float]:
    train = TrainSettings.model_validate({"steps": 100, "learning_rate": 0.1, **settings})
    return [learning_rate(train, step) for step in steps]


def test_constant_rate_is_constant() -> None:
    assert rates([0, 50, 99], schedule="constant") == [0.1, 0.1, 0.1]


def test_half_cosine_starts_whole_is_half_in_the_middle_and_would_end_at_zero() -> None:
    assert rates([0, 50, 100], schedule="cosine") == pytest.approx([0.1, 0.05, 0.0])


def test_seven_sixteenths_of_a_cosine_ends_at_a_fifth() -> None:
    expected = [0.1, 0.1 * math.cos(7 * math.pi / 32), 0.1 * 0.1950903]
    assert rates([0, 50, 100], schedule="cosine_7_16") == pytest.approx(expected)


def test_warm_up_rises_in_equal_parts_to_the_whole_rate() -> None:
    assert rates([0, 1, 3, 4], schedule="constant", warmup_steps=4) == pytest.approx([0.025, 0.05, 0.1, 0.1])


def test_the_schedule_fills_the_steps_after_the_warm_up() -> None:
    assert rates([20, 60, 100], schedule="cosine", warmup_steps=20) == pytest.approx([0.1, 0.05, 0.0])


def test_kernels_alone_are_decayed() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    decayed, spared = parameter_groups(network.parameters(), 0.5)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert [id(one) for one in decayed["params"]] == [id(network[0].weight), id(network[3].weight)]
    assert len(spared["params"]) == 4  # two biases, a norm's weight and bias


def test_frozen_parameters_are_not_optimised() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    assert parameter_groups(frozen.parameters(), 0.5) == []


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_step_by_hand(nesterov: bool) -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    train = TrainSettings(learning_rate=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.5)
    optimizer = build_optimizer(train, [weight])
    value, velocity = 2.0, 0.0
    for gradient in (1.0, 3.0):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        with_decay = gradient + 0.5 * value
        velocity = 0.9 * velocity + with_decay
        value -= 0.1 * (with_decay + 0.9 * velocity if nesterov else velocity)
    assert weight.item() == pytest.approx(value)


def test_adamw_decays_beside_the_gradient() -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = build_optimizer(TrainSettings(optimizer="adamw", learning_rate=0.1, weight_decay=0.5), [weight])
    weight.grad = torch.tensor([[7.0]])
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 1.0)  # Adam's first step is the rate itself


def test_an_exponential_rate_ends_at_its_final_share() -> None:
    expected = [0.1, 0.1 * 0.04**0.5, 0.1 * 0.04]
    assert rates([0, 50, 100], schedule="exponential", final_rate=0.04) == pytest.approx(expected)


def test_momentum_that_rises_is_hintons_update() -> None:
    train = TrainSettings(
        steps=6, learning_rate=1.5, schedule="constant", momentum=0.99, momentum_warmup_steps=4, nesterov=False,
        weight_decay=0,
    )  # fmt: skip
    weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = build_optimizer(train, [weight])
    expected, change = weight.detach().clone(), torch.zeros(2)
    for step in range(6):
        set_rates(optimizer, train, step)
        optimizer.zero_grad()
        (weight.square() / 2).sum().backward()  # the gradient is the weight
        optimizer.step()
        p = 0.5 + 0.49 * min(1, step / 4)
        share = 1 - p if step else 1.0  # torch's first step counts the gradient whole
        change = p * change - share * 1.5 * expected
        expected = expected + change
        assert weight.tolist() == pytest.approx(expected.tolist(), rel=1e-5), step


@pytest.mark.parametrize("wrong", [{"optimizer": "adamw", "nesterov": False}, {"nesterov": True}])
def test_momentum_rises_with_plain_sgd_alone(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"momentum_warmup_steps is 5, with .* expected optimizer: sgd"):
        TrainSettings.model_validate({"momentum_warmup_steps": 5, **wrong})
