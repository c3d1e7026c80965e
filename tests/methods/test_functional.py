"""The tensor functions that methods share, against numbers worked out by hand and in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from selftrain.ssl_tasks.methods.math import (
    align_distribution,
    class_counts,
    confident,
    entropy,
    kl_divergence,
    pseudo_label_logs,
    sharpen,
    soft_cross_entropy,
    squared_difference,
    weighted_cross_entropy,
)
from tests.methods.trial import softmax

LOGITS = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]]
TARGETS = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]
logits = st.lists(st.floats(-20, 20), min_size=3, max_size=3)


def test_soft_cross_entropy_is_the_formula() -> None:
    expected = -(np.array(TARGETS) * np.log(softmax(LOGITS))).sum(1)
    found = soft_cross_entropy(torch.tensor(LOGITS), torch.tensor(TARGETS))
    assert found.numpy() == pytest.approx(expected)


def test_soft_cross_entropy_of_a_hard_target_is_cross_entropy() -> None:
    labels = torch.tensor([2, 0])
    found = soft_cross_entropy(torch.tensor(LOGITS), F.one_hot(labels, 3).float())
    torch.testing.assert_close(found, F.cross_entropy(torch.tensor(LOGITS), labels, reduction="none"))


def test_kl_is_the_formula_and_zero_between_equals() -> None:
    p, q = softmax(LOGITS[:1]), softmax(LOGITS[1:])
    found = kl_divergence(torch.tensor(LOGITS[:1]), torch.tensor(LOGITS[1:]))
    assert found.item() == pytest.approx(float((p * np.log(p / q)).sum()))
    assert kl_divergence(torch.tensor(LOGITS), torch.tensor(LOGITS)).abs().max() == 0


@given(logits, logits)
def test_kl_is_never_negative(one: list[float], other: list[float]) -> None:
    assert kl_divergence(torch.tensor([one]), torch.tensor([other])).item() >= -1e-5


def test_squared_difference_is_a_mean_over_classes() -> None:
    found = squared_difference(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]]))
    assert found.item() == pytest.approx((0.16 + 0.16) / 2)


def test_entropy_of_uniform_is_log_k_and_of_a_sure_prediction_zero() -> None:
    found = entropy(torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([math.log(3), 0.0], abs=1e-6)


def test_sharpening_is_the_power_normalised() -> None:
    assert sharpen(torch.tensor([[0.6, 0.4]]), 0.5)[0].tolist() == pytest.approx([0.36 / 0.52, 0.16 / 0.52])


def test_sharpening_is_the_identity_at_one_and_one_hot_at_zero() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(sharpen(probs, 1.0), probs)
    torch.testing.assert_close(sharpen(probs, 1e-4), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))


def test_confident_reaches_the_threshold_and_one_lets_nothing_through() -> None:
    probs = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]])
    assert confident(probs, 0.75).tolist() == [1, 0, 1]
    assert confident(probs, 0.0).tolist() == [1, 1, 1]
    assert confident(probs, 1.0).tolist() == [0, 0, 0]


def test_alignment_moves_the_mean_and_does_nothing_where_means_agree() -> None:
    probs, half = torch.tensor([[0.8, 0.2]]), torch.tensor([0.5, 0.5])
    assert align_distribution(probs, half, torch.tensor([0.8, 0.2]))[0].tolist() == pytest.approx([0.5, 0.5])
    torch.testing.assert_close(align_distribution(probs, half, half), probs)


def test_alignment_stays_finite_where_the_model_never_says_a_class() -> None:
    found = align_distribution(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    assert found[0].tolist() == [1.0, 0.0]


def test_counts_add_weights_by_class() -> None:
    labels = torch.tensor([0, 2, 2])
    assert class_counts(labels, 4).tolist() == [1, 0, 2, 0]
    assert class_counts(labels, 4, torch.tensor([0.5, 1.0, 0.0])).tolist() == [0.5, 0, 1, 0]


def test_weighted_cross_entropy_divides_by_the_batch() -> None:
    labels, plain = torch.tensor([0, 1]), F.cross_entropy(torch.tensor(LOGITS), torch.tensor([0, 1]), reduction="none")
    found = weighted_cross_entropy(torch.tensor(LOGITS), labels, torch.tensor([2.0, 0.0]))
    assert found.item() == pytest.approx(plain[0].item())


def test_logs_judge_only_what_counts_and_is_known() -> None:
    labels, counted = torch.tensor([0, 0, 1, 2]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    logs = pseudo_label_logs(labels, counted, torch.tensor([0, 1, -1, 2]), 3)
    assert logs["mask"].item() == 0.75
    assert logs["pseudo_largest_class"].item() == pytest.approx(2 / 3)
    assert logs["pseudo_accuracy"].item() == 0.5


def test_logs_are_nan_where_nothing_counts_and_absent_where_no_truth_is() -> None:
    labels = torch.tensor([0, 1])
    logs = pseudo_label_logs(labels, torch.zeros(2), labels, 2)
    assert logs["mask"].item() == 0
    assert logs["pseudo_largest_class"].isnan()
    assert logs["pseudo_accuracy"].isnan()
    assert "pseudo_accuracy" not in pseudo_label_logs(labels, torch.ones(2), labels[:0], 2)
