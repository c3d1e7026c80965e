"""ICT: a mixture's prediction is the teacher's mixture."""

import math

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.ict import ICT, draw_partners, interpolation_loss
from selftrain.ssl_tasks.settings.methods import ICTSettings
from tests.methods.trial import Trial, gradients, pixel_batch, pixel_student, pixels, softmax

LABELED, UNLABELED = [[1.0, 0.0, 0.0, 0.0]], [[2.0, 0.0, 1.0, 0.0], [0.0, 3.0, 0.0, 0.5]]
BATCH = pixel_batch([pixels(*LABELED)], [1], [pixels(*UNLABELED)])


def test_the_teachers_logits_are_mixed_not_its_probabilities() -> None:
    student, teacher = np.array([[1.0, 0.0], [0.5, 0.0]]), np.array([[4.0, 0.0], [0.0, 2.0]])
    target = softmax(0.3 * teacher + 0.7 * teacher[::-1])
    found = interpolation_loss(torch.tensor(student), torch.tensor(teacher), torch.tensor([1, 0]), torch.tensor([0.3]))
    assert found.item() == pytest.approx(((softmax(student) - target) ** 2).mean())
    mixed_probs = 0.3 * softmax(teacher) + 0.7 * softmax(teacher)[::-1]
    assert found.item() != pytest.approx(((softmax(student) - mixed_probs) ** 2).mean(), rel=1e-2)


def test_a_linear_student_that_is_its_own_teacher_agrees_with_every_mixture() -> None:
    trial = Trial(ICTSettings(), student=pixel_student())
    assert trial.method.loss(trial.student, BATCH, 1.0).logs["unsupervised"].item() < 1e-10


def test_alpha_zero_mixes_nothing() -> None:
    trial = Trial(ICTSettings(alpha=0.0, labeled_alpha=0.0, weight=10.0, ramp_up=0.5), student=pixel_student())
    assert isinstance(trial.method, ICT)
    with torch.no_grad():
        trial.method.teacher.network.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    target = softmax(np.array(UNLABELED) + np.eye(4)[0])
    unsupervised = ((softmax(UNLABELED) - target) ** 2).mean()
    supervised = -math.log(softmax(LABELED)[0, 1])
    for progress, ramp in ((1.0, 1.0), (0.25, math.exp(-1.25))):
        found = trial.method.loss(trial.student, BATCH, progress).total.item()
        assert found == pytest.approx(supervised + 10 * ramp * unsupervised, rel=1e-5)


def test_the_whole_loss_is_the_papers_for_what_was_drawn() -> None:
    trial = Trial(ICTSettings(weight=10.0, ramp_up=0.5, alpha=1.0, labeled_alpha=0.3), student=pixel_student())
    assert isinstance(trial.method, ICT)
    bias = np.array([1.0, 0.0, -1.0, 0.5])
    with torch.no_grad():
        trial.method.teacher.network.head.bias.copy_(torch.tensor(bias))
    rows, unlabeled = np.array([[1.0, 0.0, 0.0, 2.0], [0.0, 1.5, 0.0, 0.0]]), np.array(UNLABELED)
    batch = pixel_batch([pixels(*rows.tolist())], [1, 3], [pixels(*UNLABELED)])
    torch.manual_seed(5)
    (i, one), (j, other) = (draw_partners(torch.zeros(2), alpha) for alpha in (0.3, 1.0))
    torch.manual_seed(5)
    found = trial.method.loss(trial.student, batch, 0.25).total.item()
    mix, share = one.item(), other.item()
    p = softmax(mix * rows + (1 - mix) * rows[i])  # a mixture's logits are the mixture of the pixels
    labels = mix * np.eye(4)[[1, 3]] + (1 - mix) * np.eye(4)[[1, 3]][i]
    teacher = unlabeled + bias
    target = softmax(share * teacher + (1 - share) * teacher[j])
    student = softmax(share * unlabeled + (1 - share) * unlabeled[j])
    expected = -(labels * np.log(p)).sum(1).mean() + 10 * math.exp(-1.25) * ((student - target) ** 2).mean()
    assert found == pytest.approx(expected, rel=1e-5)


def test_labelled_images_are_mixed_with_their_labels() -> None:
    trial = Trial(ICTSettings(), student=pixel_student())
    assert isinstance(trial.method, ICT)
    batch = pixel_batch([pixels(*UNLABELED)], [2, 0], [pixels(*UNLABELED)])
    logits, lam = np.array(UNLABELED), 0.3
    found = trial.method.supervised(torch.tensor(logits), batch, torch.tensor([1, 0]), torch.tensor([lam]))
    targets = lam * np.eye(4)[[2, 0]] + (1 - lam) * np.eye(4)[[0, 2]]
    assert found.item() == pytest.approx(-(targets * np.log(softmax(logits))).sum(1).mean(), rel=1e-5)


def test_the_target_carries_no_gradient() -> None:
    student, teacher = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    interpolation_loss(student, teacher, torch.tensor([1, 0]), torch.tensor([0.3])).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_the_teacher_follows_and_is_evaluated() -> None:
    trial = Trial(ICTSettings(decay=0.0, decay_warmup=False))
    trial.step(0)
    teacher = trial.method.evaluated(trial.student)
    assert teacher is not trial.student
    assert gradients(teacher) == []
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), trial.student.parameters(), strict=True))
