"""McNemar's exact test, the paired interval, mean corruption error."""

from math import comb

import numpy as np
import pytest

from selftrain.ssl_tasks.evaluation.metrics import compare_right, difference_interval, mcnemar, mean_corruption_error


def outcome(both: int, gains: int, losses: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models' rights on images of these four kinds."""
    first = np.repeat([True, False, True, False], [both, gains, losses, neither])
    second = np.repeat([True, True, False, False], [both, gains, losses, neither])
    return first, second


def test_mcnemar_is_a_sign_test_on_the_images_where_they_differ() -> None:
    found = mcnemar(*outcome(50, 9, 2, 20))
    tail = sum(comb(11, k) for k in range(9, 12)) / 2**11
    assert (found["gains"], found["losses"]) == (9, 2)
    assert found["p_second_better"] == pytest.approx(tail)
    assert found["p_value"] == pytest.approx(2 * tail)
    assert found["p_second_worse"] == pytest.approx(sum(comb(11, k) for k in range(2, 12)) / 2**11)


def test_models_that_agree_everywhere_differ_in_nothing() -> None:
    found = compare_right(*outcome(30, 0, 0, 10))
    assert found["difference"] == 0
    assert found["mcnemar"]["p_value"] == 1
    assert found["difference_interval"]["low"] == found["difference_interval"]["high"] == 0


def test_images_on_which_both_agree_do_not_change_the_p_value() -> None:
    assert mcnemar(*outcome(5, 8, 1, 5)) == mcnemar(*outcome(500, 8, 1, 500))


def test_paired_interval_is_narrower_than_the_unpaired_one() -> None:
    first, second = outcome(700, 40, 20, 240)
    interval = difference_interval(first, second)
    unpaired = 2 * 1.96 * np.sqrt(2 * 0.73 * 0.27 / 1000)
    assert interval["low"] < 0.02 < interval["high"]
    assert interval["high"] - interval["low"] < unpaired / 2


def test_multinomial_shortcut_equals_drawing_images_one_by_one() -> None:
    first, second = outcome(70, 14, 6, 10)
    generator = np.random.default_rng(0)
    drawn = [(second[index] * 1.0 - first[index]).mean() for index in generator.integers(100, size=(20_000, 100))]
    found = difference_interval(first, second, resamples=20_000)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.011)


def test_nothing_to_compare_counts_zero() -> None:
    assert compare_right(np.empty(0, bool), np.empty(0, bool)) == {"count": 0}


def test_corruption_error_is_relative_to_the_reference() -> None:
    reference = {"fog": [0.2, 0.4], "jpeg": [0.1, 0.1]}
    assert mean_corruption_error(reference, reference) == pytest.approx(100)
    halved = {"fog": [0.1, 0.2], "jpeg": [0.1, 0.1]}
    assert mean_corruption_error(halved, reference) == pytest.approx(75)


def test_a_corruption_that_never_hurt_the_reference_is_left_out() -> None:
    assert mean_corruption_error({"fog": [0.5], "jpeg": [0.1]}, {"fog": [0.0], "jpeg": [0.2]}) == pytest.approx(50)
