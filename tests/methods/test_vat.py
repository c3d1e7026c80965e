"""VAT: the direction that changes the prediction most, and the KL towards the clean prediction."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.math import kl_divergence
from selftrain.ssl_tasks.methods.vat import adversarial_direction, unit
from selftrain.ssl_tasks.settings.methods import VATSettings
from tests.methods.trial import Trial, batch_of, pixel_batch, pixel_student, pixels, softmax, student_of

LABELED, UNLABELED = [[1.0, 0.0, 0.0, 0.0]], [[2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.5]]
BATCH = pixel_batch([pixels(*LABELED)], [1], [pixels(*UNLABELED)])


def test_unit_directions_have_length_one_for_each_image() -> None:
    lengths = [0.0, 1e-36, 1e-18, 1e-6, 1.0, 1e10]
    directions = torch.randn(6, 2, 4, 4) * torch.tensor(lengths).view(6, 1, 1, 1)
    assert unit(directions).flatten(1).norm(dim=1).tolist() == pytest.approx([0, 1, 1, 1, 1, 1], abs=1e-5)
    coarse = unit(directions.bfloat16())
    assert coarse.dtype == torch.bfloat16
    assert coarse.float().flatten(1).norm(dim=1).tolist() == pytest.approx([0, 1, 1, 1, 1, 1], abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tiny_step_of_the_finite_difference_does_not_shorten_the_change(dtype: torch.dtype) -> None:
    student = student_of(sharpness=0.05).eval()  # small gradients
    torch.manual_seed(0)
    images = torch.randn(16, 1, 8, 8)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        clean = student(images).float()
        found = adversarial_direction(student, images, clean, 1e-6, 1)
    lengths = found.flatten(1).norm(dim=1)
    moved = lengths > 0  # rounding may leave no difference at all
    assert moved.sum() >= 4
    assert lengths[moved].tolist() == pytest.approx([1.0] * int(moved.sum()), abs=1e-4)


def test_the_weight_rises_linearly_where_a_ramp_is_asked_for_and_the_entropys_does_not() -> None:
    def losses(progress: float, **knobs: float) -> tuple[float, float]:
        trial = Trial(VATSettings(**{"weight": 2.0, **knobs}), student=pixel_student())
        torch.manual_seed(3)
        found = trial.method.loss(trial.student, BATCH, progress)
        return found.total.item(), found.logs["unsupervised"].item()

    supervised = -math.log(softmax(LABELED)[0, 1])
    p = softmax(UNLABELED)
    entropy = -0.5 * (p * np.log(p)).sum(1).mean()
    for progress, share in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (1.0, 1.0)):
        total, unsupervised = losses(progress, ramp_up=0.4, entropy_weight=0.5)
        assert total == pytest.approx(supervised + 2 * share * unsupervised + entropy, rel=1e-4), progress
    total, unsupervised = losses(0.0)
    assert total == pytest.approx(supervised + 2 * unsupervised, rel=1e-4)


def test_the_direction_is_the_leading_eigenvector_of_the_fisher_matrix() -> None:
    # For logits that are the pixels, the KL's second derivative is diag(p) - p pᵀ.
    torch.manual_seed(0)
    images = pixels(*UNLABELED)
    student = pixel_student()
    found = adversarial_direction(student, images, student(images), 1e-2, 40).flatten(1).detach().numpy()
    for row, p in zip(found, softmax(UNLABELED), strict=True):
        leading = np.linalg.eigh(np.diag(p) - np.outer(p, p))[1][:, -1]
        assert abs(row @ leading) == pytest.approx(1, abs=1e-2)


def test_loss_is_kl_of_clean_to_changed_at_length_epsilon() -> None:
    trial = Trial(VATSettings(weight=2.0, epsilon=0.5), student=pixel_student())
    torch.manual_seed(3)
    found = trial.method.loss(trial.student, BATCH, 0.5)
    torch.manual_seed(3)
    images = pixels(*UNLABELED)
    direction = adversarial_direction(trial.student, images, images.flatten(1), 1.0, 1).flatten(1).detach().numpy()
    p, q = softmax(UNLABELED), softmax(np.array(UNLABELED) + 0.5 * direction)
    unsupervised = (p * np.log(p / q)).sum(1).mean()
    assert found.logs["unsupervised"].item() == pytest.approx(unsupervised, rel=1e-4)
    assert found.total.item() == pytest.approx(-math.log(softmax(LABELED)[0, 1]) + 2 * unsupervised, rel=1e-4)


def test_entropy_minimisation_adds_the_clean_predictions_entropy() -> None:
    def total(**knobs: Any) -> float:
        trial = Trial(VATSettings(**knobs), student=pixel_student())
        torch.manual_seed(3)
        return trial.method.loss(trial.student, BATCH, 0.5).total.item()

    p = softmax(UNLABELED)
    assert total(entropy_weight=0.5) - total() == pytest.approx(-0.5 * (p * np.log(p)).sum(1).mean(), rel=1e-4)


def test_the_found_change_beats_a_random_one() -> None:
    student = student_of(sharpness=2.0).eval()
    torch.manual_seed(0)
    images = torch.randn(16, 1, 8, 8)
    clean = student(images)
    found = adversarial_direction(student, images, clean, 1.0, 1)
    divergences = [
        kl_divergence(clean, student(images + one)).mean().item() for one in (found, unit(torch.randn(16, 1, 8, 8)))
    ]
    assert divergences[0] > 5 * divergences[1]


def test_unlabelled_passes_leave_the_batch_norm_statistics_alone() -> None:
    vat, supervised = Trial(VATSettings()), student_of()
    batch = batch_of(vat.method.views)
    vat.method.loss(vat.student, batch, 0.5)
    supervised(batch.labeled[0])
    for mine, theirs in zip(vat.student.buffers(), supervised.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_no_gradient_goes_through_the_target_or_the_direction() -> None:
    trial = Trial(VATSettings(epsilon=0.5), student=pixel_student())
    torch.manual_seed(3)
    trial.method.loss(trial.student, BATCH, 0.5).total.backward()
    found, images, student = trial.student.head.bias.grad, pixels(*UNLABELED), pixel_student()
    torch.manual_seed(3)
    changed = images + 0.5 * adversarial_direction(student, images, images.flatten(1), 1.0, 1)
    q, p = softmax(changed.flatten(1).detach().tolist()), softmax(UNLABELED)
    expected = softmax(LABELED)[0] - np.eye(4)[1] + (q - p).mean(0)
    assert found is not None
    assert found.numpy() == pytest.approx(expected, abs=1e-5)
