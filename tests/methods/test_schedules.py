"""Ramps and annealing at their ends and in between."""

import math

import pytest

from selftrain.ssl_tasks.methods.math import first_step, linear_ramp, sigmoid_ramp, tsa_threshold


def test_linear_ramp_is_zero_before_straight_between_and_one_after() -> None:
    found = [linear_ramp(progress, length=0.5, start=0.25) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == [0, 0, 0.5, 1, 1]


def test_a_ramp_of_no_length_is_a_step() -> None:
    assert [linear_ramp(progress, 0.0, 0.5) for progress in (0.0, 0.49, 0.5)] == [0, 0, 1]
    assert sigmoid_ramp(0.0, 0.0) == 1


@pytest.mark.parametrize("steps", [1, 2, 7, 400])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 1 / 3, 0.7, 1.0])
def test_the_first_step_of_a_share_is_the_first_whose_progress_reaches_it(share: float, steps: int) -> None:
    reached = [step / max(1, steps - 1) >= share for step in range(steps)]
    assert first_step(share, steps) == (reached.index(True) if any(reached) else steps)


def test_sigmoid_ramp_is_the_papers() -> None:
    assert sigmoid_ramp(0.0, 0.4) == pytest.approx(math.exp(-5))
    assert sigmoid_ramp(0.2, 0.4) == pytest.approx(math.exp(-5 * 0.25))
    assert sigmoid_ramp(0.4, 0.4) == sigmoid_ramp(1.0, 0.4) == 1


def test_annealing_goes_from_one_over_k_to_one() -> None:
    assert tsa_threshold(0.0, 10, "linear") == pytest.approx(0.1)
    assert tsa_threshold(1.0, 10, "linear") == tsa_threshold(1.0, 10, "exp") == 1
    assert tsa_threshold(0.5, 10, "linear") == pytest.approx(0.55)
    assert tsa_threshold(0.5, 10, "exp") == pytest.approx(0.1 + 0.9 * math.exp(-2.5))
    assert tsa_threshold(0.5, 10, "log") == pytest.approx(0.1 + 0.9 * (1 - math.exp(-2.5)))


def test_exp_releases_late_and_log_early() -> None:
    late, even, early = (tsa_threshold(0.3, 10, schedule) for schedule in ("exp", "linear", "log"))
    assert late < even < early
