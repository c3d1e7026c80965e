"""Splits are balanced, seeded and nested, and added images move as little as can be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from selftrain.ssl_tasks.data.splits import (
    FREE,
    LABELED,
    TEST,
    UNLABELED,
    VALIDATION,
    Candidates,
    draw_splits,
    hash_order,
    proportional,
    shadowed,
    shortages,
)
from selftrain.ssl_tasks.settings.data import SplitSettings


def samples(labels: list[int], groups: list[int] | None = None, hints: list[int] | None = None) -> Candidates:
    n = len(labels)
    return Candidates(
        labels=np.array(labels, np.int32),
        hints=np.array([FREE] * n if hints is None else hints, np.int8),
        groups=np.arange(n) if groups is None else np.array(groups),
        order=hash_order([f"sample {number}" for number in range(n)], "test"),
    )


def draw(labels: list[int], **choice: Any) -> np.ndarray:
    return draw_splits(samples(labels), max(labels) + 1, SplitSettings(**choice))


def per_class(labels: list[int], split: np.ndarray, name: int) -> list[int]:
    return np.bincount(np.array(labels)[split == name], minlength=max(labels) + 1).tolist()


UNEVEN = [0] * 100 + [1] * 50 + [2] * 20


def test_balanced_gives_every_class_the_same() -> None:
    assert per_class(UNEVEN, draw(UNEVEN, labels_per_class=4), LABELED) == [4, 4, 4]


def test_stratified_follows_the_classes_shares() -> None:
    split = draw(UNEVEN, labeled_fraction=0.5, strategy="stratified", test=0, validation=0)
    assert per_class(UNEVEN, split, LABELED) == [50, 25, 10]


def test_long_tail_decays_from_the_first_class_to_the_last() -> None:
    split = draw(UNEVEN, labels_per_class=16, strategy="long_tailed", imbalance=16, test=0, validation=0)
    assert per_class(UNEVEN, split, LABELED) == [16, 4, 1]


def test_long_tail_without_a_budget_uses_the_longest_head_that_fits() -> None:
    split = draw(UNEVEN, strategy="long_tailed", imbalance=4, test=0, validation=0)
    assert per_class(UNEVEN, split, LABELED) == [80, 40, 20]


def test_shares_are_taken_of_each_class() -> None:
    split = draw(UNEVEN, test=0.2, validation=0.1)
    assert per_class(UNEVEN, split, TEST) == [20, 10, 4]
    assert per_class(UNEVEN, split, VALIDATION) == [10, 5, 2]
    assert per_class(UNEVEN, split, LABELED) == [70, 35, 14]


def test_numbers_are_shared_out_in_proportion() -> None:
    split = draw(UNEVEN, test=17, validation=0)
    assert per_class(UNEVEN, split, TEST) == [10, 5, 2]
    assert per_class(UNEVEN, split, VALIDATION) == [0, 0, 0]


def test_every_class_of_three_is_tested_and_every_class_keeps_one_for_training() -> None:
    labels = [0, 0, 0, 1, 2, 2]
    split = draw(labels, test=0.2, validation=0.2)
    assert per_class(labels, split, TEST) == [1, 0, 0]
    assert min(per_class(labels, split, LABELED)) >= 1


def test_a_smaller_budget_is_a_part_of_a_larger_one() -> None:
    small, large = (draw(UNEVEN, labels_per_class=count) == LABELED for count in (3, 9))
    assert (large | ~small).all()


def test_other_seeds_draw_other_samples() -> None:
    ids = [f"{number}" for number in range(100)]
    orders = [np.argsort(hash_order(ids, f"split {seed}")) for seed in (0, 1)]
    assert (orders[0] != orders[1]).any()
    assert (orders[0] == np.argsort(hash_order(ids, "split 0"))).all()


@given(st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_unlabelled_images_move_nothing(added: int, seed: int) -> None:
    before = draw(UNEVEN, labels_per_class=5)
    where = np.sort(np.random.default_rng(seed).integers(0, len(UNEVEN) + 1, added))
    names = np.insert(np.array([f"sample {number}" for number in range(len(UNEVEN))], object), where, "added")
    labels = np.insert(np.array(UNEVEN), where, -1)
    grown = Candidates(
        labels.astype(np.int32), np.full(len(labels), FREE, np.int8), np.arange(len(labels)), hash_order(names, "test")
    )
    after = draw_splits(grown, 3, SplitSettings(labels_per_class=5))
    assert (after[labels >= 0] == before).all()
    assert (after[labels < 0] == UNLABELED).all()


@given(st.lists(st.integers(0, 2), min_size=30, max_size=80), st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_a_new_labelled_image_moves_at_most_one_across_each_border(labels: list[int], new: int) -> None:
    labels = [*labels, 0, 1, 2, 0, 1, 2]
    before, after = (
        draw_splits(samples(all_), 3, SplitSettings(labels_per_class=1)) for all_ in (labels, [*labels, new])
    )
    assert (before != after[:-1]).sum() <= 4


@given(st.integers(1, 60), st.sampled_from([0.2, 7]))
@settings(max_examples=25, deadline=None)
def test_a_test_set_that_the_source_names_is_moved_by_no_new_label(added: int, share: float) -> None:
    named = [TEST if number % 5 == 0 else FREE for number in range(len(UNEVEN))]
    grown = samples([*UNEVEN, *(number % 3 for number in range(added))], hints=[*named, *[FREE] * added])
    for found in (samples(UNEVEN, hints=named), grown):
        split = draw_splits(found, 3, SplitSettings(test=share, validation=share))
        assert np.flatnonzero(split == TEST).tolist() == list(range(0, len(UNEVEN), 5))


def test_new_labels_move_images_in_and_out_of_drawn_shares_and_more_so_of_drawn_numbers() -> None:
    def moved(**sizes: Any) -> int:
        before, after = draw([0] * 1000, **sizes), draw([0] * 1000 + [0] * 100, **sizes)[:1000]
        return int((before != after).sum())

    assert 0 < moved(validation=0.1, test=0.2) < 30
    assert moved(validation=200, test=500) > 60


def test_the_sources_own_splits_are_obeyed() -> None:
    labels = [0, 1, 0, 1, 0, 1, 0, 1]
    hints = [TEST, TEST, VALIDATION, VALIDATION, UNLABELED, LABELED, LABELED, FREE]
    split = draw_splits(samples(labels, hints=hints), 2, SplitSettings())
    assert split.tolist() == [*hints[:-1], LABELED]


def test_a_budget_is_drawn_among_those_the_source_calls_labelled() -> None:
    labels = [0, 1] * 10
    split = draw_splits(samples(labels, hints=[LABELED] * 20), 2, SplitSettings(labels_per_class=3))
    assert per_class(labels, split, LABELED) == [3, 3]
    assert not np.isin(split, (VALIDATION, TEST)).any()


def test_of_equal_images_one_is_drawn() -> None:
    labels = [0] * 20 + [1] * 20
    groups = [number // 2 for number in range(40)]
    found = samples(labels, groups)
    split = draw_splits(found, 2, SplitSettings(labels_per_class=2))
    for name in (LABELED, VALIDATION, TEST):
        drawn = found.groups[split == name]
        assert len(set(drawn.tolist())) == len(drawn)


def short(found: Candidates, split: np.ndarray, **choice: Any) -> list[str]:
    usable = (found.groups >= 0) & (shadowed(found.groups, split) < 0)
    return shortages(found, split, usable, ("a", "b"), SplitSettings(**choice))


def test_an_image_under_two_classes_counts_for_the_one_that_may_draw_it() -> None:
    labels, groups = [0] * 4 + [1] * 4, [0, 1, 2, 3, 3, 4, 5, 6]
    found = samples(labels, groups)
    split = draw_splits(found, 2, SplitSettings(labels_per_class=4, test=0, validation=0))
    assert sorted(per_class(labels, split, LABELED)) == [3, 4]
    (line,) = short(found, split, labels_per_class=4)
    assert "has 3 labelled training images; expected at least 4" in line
    assert not short(found, split, labels_per_class=3)


def test_where_all_labels_are_used_an_image_under_two_classes_is_in_both() -> None:
    found = samples([0, 0, 1], [0, 1, 1])
    split = draw_splits(found, 2, SplitSettings(test=0, validation=0))
    assert per_class([0, 0, 1], split, LABELED) == [2, 1]
    assert not short(found, split)


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3), st.integers(-1, 9)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_image_of_validation_or_test_is_used_in_training(rows: list[tuple[int, int, int]]) -> None:
    labels, hints, groups = (list(column) for column in zip(*rows, strict=True))
    found = samples(labels, groups, hints)
    split = draw_splits(found, 4, SplitSettings(test=0.3, validation=0.3))
    used = (found.groups >= 0) & (shadowed(found.groups, split) < 0)
    images = {name: set(found.groups[used & (split == name)].tolist()) for name in range(4)}
    assert not (images[LABELED] | images[UNLABELED]) & (images[VALIDATION] | images[TEST])
    assert not images[VALIDATION] & images[TEST]
    assert images[TEST] == set(found.groups[(split == TEST) & (found.groups >= 0)].tolist())


@given(st.integers(0, 200), st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_proportional_gives_the_whole_and_no_more_than_there_is(total: int, sizes: list[int]) -> None:
    counts = proportional(total, sizes)
    assert sum(counts) == min(total, sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


@pytest.mark.parametrize("choice", [{"labels_per_class": 4, "labeled_fraction": 0.1}, {"validation": 1.5}])
def test_contradicting_settings_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SplitSettings(**choice)
