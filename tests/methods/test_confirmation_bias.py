"""Confirmation bias (Arazo): the memory of soft labels, MixUp with a raw λ, the two regularisers, the warm-up."""

import math

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.confirmation_bias import ConfirmationBias, distance_from_uniform, plain_prediction
from tests.methods.trial import CLASSES, PROBLEM, TinyPools, Trial, batch_of, images_of, settings_of, student_of

NOTHING_ELSE = {"class_regulariser": 0.0, "entropy_regulariser": 0.0}


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_distance_from_uniform_by_hand() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    expected = -(math.log(0.7) + math.log(0.3)) / 2 - math.log(2)
    assert distance_from_uniform(logits).item() == pytest.approx(expected, rel=1e-5)
    assert distance_from_uniform(torch.zeros(3, 5)).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_is_one_mean_over_labelled_and_remembered_images() -> None:
    trial = Trial(
        settings_of("confirmation_bias", warmup=0.0, alpha=0.0, **NOTHING_ELSE), student=student_of(model="mlp")
    )
    batch = batch_of(trial.method.views)
    memory = torch.rand(PROBLEM.num_unlabeled, CLASSES)
    trial.method.memory.copy_(memory / memory.sum(1, keepdim=True))
    targets = trial.method.memory[batch.unlabeled_index].numpy()
    with torch.no_grad():
        labeled = log_softmax(trial.student(batch.labeled[0]).numpy())
        unlabeled = log_softmax(trial.student(batch.unlabeled[0]).numpy())
    expected = -(np.eye(CLASSES)[batch.labels] * labeled).sum() - (targets * unlabeled).sum()
    assert trial.method.loss(trial.student, batch, 0.5).total.item() == pytest.approx(expected / 12, rel=1e-5)


def test_mixed_targets_are_the_raw_lambda_of_two_cross_entropies(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "selftrain.ssl_tasks.methods.confirmation_bias.draw_lambda"
    monkeypatch.setattr(module, lambda alpha, size, device: torch.full((size,), 0.2))
    trial = Trial(settings_of("confirmation_bias", warmup=1.0, **NOTHING_ELSE), student=student_of(model="mlp"))
    batch = batch_of(trial.method.views)
    torch.manual_seed(0)
    partner = torch.randperm(4)
    images = 0.2 * batch.labeled[0] + 0.8 * batch.labeled[0][partner]
    with torch.no_grad():
        logits = trial.student(images)
    losses = [torch.nn.functional.cross_entropy(logits, labels) for labels in (batch.labels, batch.labels[partner])]
    torch.manual_seed(0)
    total = trial.method.loss(trial.student, batch, 0.5).total
    assert total.item() == pytest.approx((0.2 * losses[0] + 0.8 * losses[1]).item(), rel=1e-5)


def test_a_prediction_becomes_the_label_of_the_next_time() -> None:
    trial = Trial(settings_of("confirmation_bias", warmup=0.0))
    batch = batch_of(trial.method.views)
    trial.student.train()
    before = trial.method.memory.clone()
    losses = trial.method.loss(trial.student, batch, 0.0)
    predicted = plain_prediction(trial.student, batch.unlabeled[1])
    assert torch.allclose(trial.method.memory[batch.unlabeled_index], predicted, atol=1e-5)
    assert torch.equal(trial.method.memory[8:], before[8:])
    assert losses.logs["pseudo_largest_class"] == 1  # the labels of this step were the old, uniform ones
    assert not trial.method.memory.requires_grad


def test_soft_labels_are_made_without_dropout_but_with_the_batch_norm_of_training() -> None:
    student, images = student_of(dropout=0.9).train(), images_of(1, 8)
    one, two = plain_prediction(student, images), plain_prediction(student, images)
    assert torch.equal(one, two)
    assert student.head.p == 0.9
    assert not torch.allclose(one, student.eval()(images).softmax(1))


def test_the_warm_up_reads_no_unlabelled_image_and_ends_with_a_pass_over_all() -> None:
    trial = Trial(settings_of("confirmation_bias", warmup=0.4))
    assert trial.method.refresh_from() == 2
    uniform = trial.method.memory.clone()
    for number in range(2):
        assert "unsupervised" not in trial.step(number).logs
    assert torch.equal(trial.method.memory, uniform)
    assert "unsupervised" in trial.step(2).logs
    assert not torch.isclose(trial.method.memory, uniform).all(dim=1).any()


def test_without_a_warm_up_the_first_labels_are_made_before_the_first_step() -> None:
    method = ConfirmationBias(settings_of("confirmation_bias", warmup=0.0), PROBLEM)
    student = student_of()
    statistics = {name: value.clone() for name, value in student.named_buffers()}
    method.before_epoch(student, TinyPools())
    assert not torch.isclose(method.memory, torch.tensor(0.25)).all()
    assert all(torch.equal(value, statistics[name]) for name, value in student.named_buffers())
    assert method.refresh_every() == PROBLEM.steps


def test_regularisers_are_added_with_their_weights() -> None:
    def total(**knobs: float) -> tuple[float, dict[str, torch.Tensor]]:
        trial = Trial(settings_of("confirmation_bias", warmup=0.0, alpha=0.0, **knobs))
        trial.student.train()
        losses = trial.method.loss(trial.student, batch_of(trial.method.views), 0.5)
        return losses.total.item(), losses.logs

    plain, logs = total(**NOTHING_ELSE)
    both, _ = total(class_regulariser=2.0, entropy_regulariser=3.0)
    assert both == pytest.approx(plain + (2 * logs["uniform"] + 3 * logs["entropy"]).item(), rel=1e-4)
