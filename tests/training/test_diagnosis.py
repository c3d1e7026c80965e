"""Warnings where nothing is learned from the unlabelled images, and none elsewhere."""

import math

import pytest

from selftrain.ssl_tasks.settings.methods import FixMatchSettings
from selftrain.ssl_tasks.training.history import History, diagnose


def history_of(masks: list[float], shares: list[float]) -> History:
    history = History()
    for number, (mask, share) in enumerate(zip(masks, shares, strict=True), start=1):
        history.add(10 * number, {"mask": mask, "pseudo_largest_class": share})
    return history


def kinds(masks: list[float], shares: list[float], unlabeled_batch: int = 100, prior: float = 0.1) -> list[str]:
    return list(diagnose(history_of(masks, shares), FixMatchSettings(), 100, unlabeled_batch, prior))


def test_empty_mask_in_the_first_fifth_names_the_threshold() -> None:
    found = diagnose(history_of([0, 0], [math.nan] * 2), FixMatchSettings(), 100, 100)
    assert list(found) == ["nothing_selected"]
    assert "method.threshold (now 0.95)" in found["nothing_selected"]
    assert "train.steps (now 100)" in found["nothing_selected"]


def test_nothing_is_said_before_the_first_fifth() -> None:
    assert kinds([0], [math.nan]) == []


def test_one_image_that_counted_is_enough() -> None:
    assert kinds([0, 0.001], [math.nan, 1.0]) == []


def test_method_without_a_mask_is_not_judged() -> None:
    assert kinds([math.nan] * 3, [math.nan] * 3) == []


def test_one_class_above_nine_tenths_is_a_collapse() -> None:
    found = diagnose(history_of([1, 1, 1], [0.2, 0.5, 0.95]), FixMatchSettings(), 100, 100)
    assert list(found) == ["collapsed"]
    assert "95%" in found["collapsed"]
    assert "method.distribution_alignment" in found["collapsed"]


@pytest.mark.parametrize(
    ("mask", "share", "batch", "prior"),
    [(1.0, 0.9, 100, 0.1), (0.05, 1.0, 100, 0.1), (1.0, 0.97, 100, 0.95)],
    ids=["at the limit", "too few images to judge", "the labels are as lopsided"],
)
def test_no_collapse_where_it_may_be_chance_or_right(mask: float, share: float, batch: int, prior: float) -> None:
    assert kinds([mask] * 3, [share] * 3, batch, prior) == []
