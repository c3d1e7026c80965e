"""Keyed orders and keyed numbers: bijections, reproducible, and the same however they are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.ssl_tasks.data.order import build_sampler, key_of, permute, uniform_rows

KEYS = st.integers(0, 2**64 - 1)


@given(st.integers(1, 3000), KEYS)
@settings(max_examples=60, deadline=None)
def test_a_keyed_permutation_is_a_bijection(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(st.integers(1, 2**40), KEYS, st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_each_index_goes_its_way_alone(size: int, key: int, indices: list[int]) -> None:
    index = np.array(indices) % size
    together = permute(index, size, key)
    assert ((together >= 0) & (together < size)).all()
    assert [permute(np.array([one]), size, key)[0] for one in index] == together.tolist()
    assert len(np.unique(together)) == len(np.unique(index))


def test_sizes_and_keys_may_differ_within_a_call() -> None:
    sizes, keys = np.array([5, 9, 1, 9]), np.array([1, 2, 3, 7], np.uint64)
    expected = [permute(np.array([0]), int(size), int(key))[0] for size, key in zip(sizes, keys, strict=True)]
    assert permute(np.zeros(4, np.int64), sizes, keys).tolist() == expected


def test_all_orders_of_four_are_about_as_frequent() -> None:
    orders, counts = np.unique(
        [permute(np.arange(4), 4, key_of(seed)) for seed in range(4800)], axis=0, return_counts=True
    )
    assert len(orders) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7  # χ² with 23 degrees of freedom, p = .001


def test_positions_of_a_larger_order_are_uniform_and_uncorrelated() -> None:
    orders = np.stack([permute(np.arange(50), 50, key_of("orders", seed)) for seed in range(2000)])
    counts = np.stack([np.bincount(column, minlength=50) for column in orders.T])
    assert ((counts - 40) ** 2 / 40).sum() / (50 * 49) == pytest.approx(1, abs=0.1)
    neighbours = np.corrcoef(orders[:, :-1].ravel(), orders[:, 1:].ravel())[0, 1]
    assert abs(neighbours + 1 / 49) < 0.02  # drawing without replacement correlates by -1 / (n - 1)


@given(st.integers(0, 500), st.integers(0, 60), st.integers(1, 11))
@settings(max_examples=50, deadline=None)
def test_rows_of_a_table_do_not_depend_on_the_cut(start: int, count: int, width: int) -> None:
    whole = uniform_rows(0, start + count, width, 3, "weak", 7)
    assert np.array_equal(uniform_rows(start, start + count, width, 3, "weak", 7), whole[start:])
    assert ((whole >= 0) & (whole < 1)).all()


def test_names_make_different_numbers() -> None:
    names: list[tuple[object, ...]] = [(), ("a",), ("b",), ("a", "b"), ("ab",), (1,), ("1",)]
    draws = {float(uniform_rows(0, 1, 1, seed, *name)[0, 0]) for name in names for seed in (0, 1)}
    assert len(draws) == 2 * len(names)
    assert key_of(1, "2") != key_of("1", 2)


def test_the_order_of_a_billion_samples_needs_no_array() -> None:
    sampler = build_sampler(0, "unlabeled", 10**9)
    drawn = sampler.entries(10**9 - 500, 10**9 + 500)
    assert len(np.unique(drawn[:500])) == 500
    assert drawn.max() > 9 * 10**8
    assert drawn.min() < 10**8


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=12).filter(
        lambda e: any(c for _, c in e)
    )
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_shows_each_copy_once_and_classes_take_turns(entries: list[tuple[int, int]]) -> None:
    classes, copies = (np.array(column) for column in zip(*entries, strict=True))
    total = int(copies.sum())
    plain = build_sampler(1, "pool", len(entries), copies).entries(0, 2 * total)
    for epoch in (plain[:total], plain[total:]):
        assert np.array_equal(np.bincount(epoch, minlength=len(entries)), copies)
    shown = np.unique(classes[copies > 0])
    balanced = build_sampler(1, "pool", len(entries), copies, classes).entries(0, 6 * len(shown))
    assert np.array_equal(np.bincount(classes[balanced], minlength=4)[shown], np.full(len(shown), 6))
    assert (copies[balanced] > 0).all()
