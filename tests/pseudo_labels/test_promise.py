"""`target_precision`: exact bounds, and a promise that is kept on data with known truth."""

import numpy as np
import pytest
from scipy.stats import binom

from selftrain.ssl_tasks.pseudo_labels.promise import (
    HeldOut,
    Ladder,
    lower_bound,
    needed_images,
    promised_thresholds,
)


def held_out(rows: list[tuple[int, float, bool]]) -> HeldOut:
    predicted, confidence, correct = zip(*rows, strict=True)
    return HeldOut(np.array(predicted, np.int64), np.array(confidence, np.float32), np.array(correct, bool))


def ladder(*confidences: float) -> Ladder:
    values, counts = np.unique(np.array(confidences, np.float32), return_counts=True)
    return Ladder(values[::-1], counts[::-1])


@pytest.mark.parametrize(("correct", "total"), [(9, 10), (45, 45), (1, 50), (180, 200)])
def test_the_bound_is_where_so_many_right_become_too_unlikely(correct: int, total: int) -> None:
    bound = lower_bound(correct, total, 0.1)
    assert binom.sf(correct - 1, total, bound) == pytest.approx(0.1, abs=1e-9)


def test_nothing_right_proves_nothing() -> None:
    assert lower_bound(0, 10, 0.1) == 0


@pytest.mark.parametrize(("target", "images"), [(0.9, 22), (0.95, 45), (0.99, 230)])
def test_a_flawless_record_of_this_length_is_just_enough(target: float, images: int) -> None:
    assert needed_images(target, 0.1) == images
    assert lower_bound(images, images, 0.1) >= target > lower_bound(images - 1, images - 1, 0.1)


def test_without_a_class_s_candidates_nothing_is_promised_for_it() -> None:
    rows = [(0, 0.9, True)] * 300
    promise = promised_thresholds(held_out(rows), [ladder(*[0.9] * 50), ladder()], 0.9, 0.9)
    assert promise.thresholds[0] == np.float32(0.9)
    assert promise.scope[0] == "class"
    assert np.isinf(promise.thresholds[1])
    assert promise.scope[1] == "none"


def test_classes_with_few_held_out_images_are_judged_together() -> None:
    rows = [(label, 0.9, True) for label in range(10) for _ in range(10)]  # 10 each prove nothing, 100 prove 0.95
    promise = promised_thresholds(held_out(rows), [ladder(0.9)] * 10, 0.95, 0.9)
    assert set(promise.scope) == {"pooled"}
    assert set(promise.thresholds) == {np.float32(0.9)}


def test_the_walk_down_ends_at_the_first_rung_that_fails() -> None:
    # Right above 0.8, wrong below: the lenient rung with enough right ones again must not be reached through it.
    rows = [(0, 0.9, True)] * 300 + [(0, 0.7, False)] * 300 + [(0, 0.5, True)] * 30000
    promise = promised_thresholds(held_out(rows), [ladder(*[0.9] * 10, *[0.7] * 10, *[0.5] * 1000)], 0.9, 0.9)
    assert promise.thresholds[0] == np.float32(0.9)


def test_too_few_held_out_images_promise_nothing() -> None:
    promise = promised_thresholds(held_out([(0, 0.99, True)] * 20), [ladder(*[0.99] * 100)], 0.95, 0.9)
    assert np.isinf(promise.thresholds[0])
    assert promise.scope == ("none",)


@pytest.mark.parametrize(("target", "classes"), [(0.9, 3), (0.95, 1)])
def test_the_promise_is_kept_in_nine_of_ten_resamplings(target: float, classes: int) -> None:
    # Confidence says nothing here: every threshold has a precision just below the target, the worst case.
    random, broken, resamplings = np.random.default_rng(0), 0, 300
    ladders = [ladder(*random.random(2000)) for _ in range(classes)]
    for _ in range(resamplings):
        confidence, predicted = random.random(600), random.integers(0, classes, 600)
        rows = HeldOut(predicted, confidence.astype(np.float32), random.random(600) < target - 1e-4)
        broken += bool(np.isfinite(promised_thresholds(rows, ladders, target, 0.9).thresholds).any())
    # 10 % may be broken: with 300 resamplings, more than 14.5 % would be seen once in a hundred times.
    assert broken <= binom.ppf(0.99, resamplings, 0.1)
