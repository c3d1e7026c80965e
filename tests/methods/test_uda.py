"""UDA: the temperature sharpens the target alone, the mask is strict, annealing looks at the true class."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.uda import annealed_cross_entropy, consistency_loss, in_domain
from selftrain.ssl_tasks.settings.methods import UDASettings
from tests.methods.trial import Trial, pixel_batch, pixel_student, pixels, softmax

LABELED, LABELS = [[1.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0]], [1, 0]
WEAK = [[5.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]  # confidence .98 and .48
STRONG = [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
BATCH = pixel_batch([pixels(*LABELED)], LABELS, [pixels(*WEAK), pixels(*STRONG)])
CORRECT = softmax(LABELED)[[0, 1], LABELS]
SUPERVISED = -np.log(CORRECT).mean()


def divergence(temperature: float) -> np.ndarray:
    p, q = softmax(np.array(WEAK) / temperature), softmax(STRONG)
    return (p * np.log(p / q)).sum(1)


def total(progress: float = 0.5, **knobs: Any) -> float:
    trial = Trial(UDASettings(**knobs), student=pixel_student())
    return trial.method.loss(trial.student, BATCH, progress).total.item()


def test_loss_is_the_formula() -> None:
    assert total() == pytest.approx(SUPERVISED + divergence(0.4)[0] / 2, rel=1e-5)
    assert total(weight=3.0, threshold=0.0) == pytest.approx(SUPERVISED + 3 * divergence(0.4).mean(), rel=1e-5)


def test_temperature_matters_and_near_zero_the_target_is_the_hard_label() -> None:
    hard = -np.log(softmax(STRONG)[[0, 1], [0, 1]]).mean()
    found = consistency_loss(torch.tensor(STRONG), torch.tensor(WEAK), torch.ones(2), 1e-3)
    assert found.item() == pytest.approx(hard, rel=1e-5)
    assert total(temperature=0.4) != pytest.approx(total(temperature=1.0), rel=1e-3)


def test_the_mask_is_strict_and_looks_at_the_prediction_before_sharpening() -> None:
    confidence = pixels(*WEAK).flatten(1).softmax(1).max(1).values
    assert total(threshold=confidence[0].item()) == pytest.approx(SUPERVISED, rel=1e-5)
    assert total(threshold=1.0) == pytest.approx(SUPERVISED, rel=1e-5)
    # Sharpened, the second prediction is .78 sure; the threshold does not see that.
    assert total(threshold=0.6) == pytest.approx(SUPERVISED + divergence(0.4)[0] / 2, rel=1e-5)


def test_the_target_carries_no_gradient() -> None:
    strong, weak = torch.tensor(STRONG, requires_grad=True), torch.tensor(WEAK, requires_grad=True)
    consistency_loss(strong, weak, torch.ones(2), 0.4).backward()
    assert weak.grad is None
    assert strong.grad is not None
    assert strong.grad.numpy() == pytest.approx((softmax(STRONG) - softmax(np.array(WEAK) / 0.4)) / 2, abs=1e-6)


def test_annealing_drops_images_whose_true_class_is_already_likely() -> None:
    logits, labels = torch.tensor(LABELED), torch.tensor(LABELS)
    assert CORRECT[0] < 0.5 < CORRECT[1]
    assert annealed_cross_entropy(logits, labels, 0.5).item() == pytest.approx(-math.log(CORRECT[0]))
    assert annealed_cross_entropy(logits, labels, 1.0).item() == pytest.approx(SUPERVISED)


def test_annealing_looks_at_the_true_class_not_at_the_largest() -> None:
    sure_but_wrong = torch.tensor([[4.0, 0.0, 0.0, 0.0]])
    assert annealed_cross_entropy(sure_but_wrong, torch.tensor([1]), 0.5).item() > 4


def test_annealing_divides_by_one_where_no_image_counts() -> None:
    logits = torch.tensor(LABELED, requires_grad=True)
    loss = annealed_cross_entropy(logits, torch.tensor(LABELS), 0.0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("schedule", ["linear", "exp", "log"])
def test_annealing_ends_with_all_labels(schedule: Literal["linear", "exp", "log"]) -> None:
    assert total(1.0, tsa=schedule) == pytest.approx(total(1.0), rel=1e-5)
    assert total(0.0, tsa=schedule) == pytest.approx(-math.log(CORRECT[0]) + divergence(0.4)[0] / 2, rel=1e-5)


def test_entropy_weight_adds_the_weak_predictions_entropy() -> None:
    p = softmax(WEAK)
    expected = -(p * np.log(p)).sum(1).mean()
    assert total(entropy_weight=0.5) - total() == pytest.approx(0.5 * expected, rel=1e-4)


def test_the_in_domain_share_keeps_the_most_confident_images() -> None:
    confidence = torch.tensor([0.2, 0.9, 0.4, 0.8])
    assert in_domain(confidence, 0.5).tolist() == [0, 1, 0, 1]
    assert in_domain(confidence, 0.01).tolist() == [0, 1, 0, 0]
    assert in_domain(confidence, 1.0).tolist() == [1, 1, 1, 1]
    kept = SUPERVISED + divergence(0.4)[0] / 2
    assert total(threshold=0.0, in_domain_share=0.5) == pytest.approx(kept, rel=1e-5)
