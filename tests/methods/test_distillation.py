"""Distillation of stored soft labels."""

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.distillation import distillation_loss
from tests.methods.trial import CLASSES, Trial, batch_of, gradients, settings_of, student_of


def test_both_sides_are_taken_at_the_temperature() -> None:
    teacher, student = np.array([[2.0, -1.0, 0.5]]), np.array([[0.1, 0.3, -0.2]])
    soft = [np.exp(logits / 4) / np.exp(logits / 4).sum() for logits in (teacher, student)]
    expected = -(soft[0] * np.log(soft[1])).sum()
    probs = torch.tensor(teacher).softmax(1)
    assert distillation_loss(torch.tensor(student), probs, 4.0).item() == pytest.approx(expected, rel=1e-6)


def test_a_student_that_equals_its_teacher_has_the_teachers_entropy_and_no_gradient() -> None:
    logits = torch.randn(5, CLASSES, requires_grad=True)
    probs = logits.detach().softmax(1)
    loss = distillation_loss(logits, probs, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-(probs * probs.log()).sum(1).mean().item(), rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_hard_labels_stay_hard_at_any_temperature() -> None:
    logits, labels = torch.randn(4, CLASSES), torch.arange(4) % CLASSES
    one_hot = torch.eye(CLASSES)[labels]
    expected = torch.nn.functional.cross_entropy(logits / 3, labels)
    assert distillation_loss(logits, one_hot, 3.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_one_learns_from_the_teacher_alone() -> None:
    trial = Trial(settings_of("distillation"), student=student_of(model="mlp"))
    batch = batch_of(trial.method.views)
    other = type(batch)(**{**vars(batch), "labels": (batch.labels + 1) % CLASSES})
    grads = []
    for one in (batch, other):
        trial.student.zero_grad()
        trial.method.loss(trial.student, one, 0.5).total.backward()
        grads.append([grad.clone() for grad in gradients(trial.student)])
    assert all(torch.equal(first, second) for first, second in zip(*grads, strict=True))


def test_the_weight_blends_the_two_losses() -> None:
    trial = Trial(settings_of("distillation", weight=0.3))
    losses = trial.method.loss(trial.student, batch_of(trial.method.views), 0.5)
    expected = 0.7 * losses.logs["supervised"] + 0.3 * losses.logs["unsupervised"]
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_zero_is_supervised_learning_bit_for_bit() -> None:
    batch = batch_of(Trial(settings_of("distillation")).method.views)
    totals = []
    for settings in (settings_of("distillation", weight=0.0), settings_of("supervised")):
        trial = Trial(settings)
        trial.student.train()
        totals.append(trial.method.loss(trial.student, batch, 0.5).total)
    assert torch.equal(*totals)
