"""Meta Pseudo Labels: who steps when, the feedback and its sign, UDA on the teacher, fine-tuning."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_tasks.functional import soft_cross_entropy
from ssl_tasks.methods.meta_pseudo_labels import MetaPseudoLabels, descend, gently, uda_loss
from tests.methods.trial import CLASSES, Trial, batch_of, settings_of, student_of

AT_ONCE = {"student_wait": 0.0, "uda_ramp_up": 0.0, "finetune": 0.0}


def weights(network: torch.nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten().clone() for one in network.parameters()])


def trial_of(**knobs: object) -> tuple[Trial, MetaPseudoLabels]:
    trial = Trial(settings_of("meta_pseudo_labels", **{**AT_ONCE, **knobs}), student=student_of(model="mlp"))
    assert isinstance(trial.method, MetaPseudoLabels)
    return trial, trial.method


def take(trial: Trial, progress: float = 0.5) -> dict[str, Tensor]:
    trial.student.train()
    step = trial.method.train_step
    return step(trial.student, trial.optimizer, batch_of(trial.method.views), progress).logs  # type: ignore[operator]


def test_uda_masks_by_the_weak_view_and_the_temperature_is_the_targets_alone() -> None:
    weak, strong = torch.tensor([[2.0, 0.0], [0.1, 0.0]]), torch.tensor([[0.5, 0.2], [0.3, 0.9]])
    loss, mask = uda_loss(weak, strong, temperature=0.5, threshold=0.6)
    target = np.exp([4.0, 0.0]) / np.exp([4.0, 0.0]).sum()
    prediction = np.exp([0.5, 0.2]) / np.exp([0.5, 0.2]).sum()
    assert mask.tolist() == [1, 0]
    assert loss.item() == pytest.approx(-(target * np.log(prediction)).sum() / 2, rel=1e-5)


def test_uda_sends_no_gradient_through_its_target() -> None:
    weak, strong = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    uda_loss(weak, strong, 0.7, 0.0)[0].backward()
    assert weak.grad is None
    assert strong.grad is not None


def test_feedback_by_soft_labels_would_have_no_gradient_and_by_hard_ones_has() -> None:
    logits = torch.randn(6, CLASSES, requires_grad=True)
    soft_cross_entropy(logits, logits.detach().softmax(1)).mean().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-7
    logits.grad = None
    F.cross_entropy(logits, logits.argmax(1)).backward()
    assert logits.grad.abs().max() > 1e-3


def test_the_feedback_reaches_the_teacher() -> None:
    moved = []
    for feedback_weight in (0.0, 5.0):
        trial, method = trial_of(feedback_weight=feedback_weight)
        method.usual.fill_(-1.0)
        take(trial)
        moved.append(weights(method.teacher))
    assert (moved[0] - moved[1]).abs().max() > 1e-4


def test_feedback_is_the_change_of_the_labelled_loss_less_its_moving_average() -> None:
    trial, method = trial_of(feedback_decay=0.9)
    method.usual.fill_(0.5)
    batch = batch_of(method.views)
    before = F.cross_entropy(trial.student(batch.labeled[0]), batch.labels).item()
    feedback = take(trial)["feedback"].item()
    after = F.cross_entropy(trial.student(batch.labeled[0]), batch.labels).item()
    usual = 0.9 * 0.5 + 0.1 * (after - before)
    assert method.usual.item() == pytest.approx(usual, rel=1e-4)
    assert feedback == pytest.approx(after - before - usual, rel=1e-3)


def test_theory_has_the_opposite_sign() -> None:
    official, theory = (take(trial_of(feedback_sign=sign)[0])["feedback"] for sign in ("official", "theory"))
    assert official == -theory
    assert official != 0


@pytest.mark.parametrize(("feedback", "surer"), [(1.0, True), (-1.0, False)])
def test_positive_feedback_makes_the_teacher_surer_of_its_labels(feedback: float, surer: bool) -> None:
    trial, method = trial_of(uda_weight=0.0, label_smoothing=0.0)
    batch = batch_of(method.views)
    logits = [method.teacher(images) for images in (batch.labeled[0], *batch.unlabeled)]
    hard = logits[2].argmax(1)
    before = F.cross_entropy(logits[2], hard).item()
    losses = method.teacher_losses(tuple(logits), hard, torch.tensor(feedback), batch, 0.5)  # type: ignore[arg-type]
    descend(trial.optimizer, losses.total)
    taught = F.cross_entropy(method.teacher(batch.unlabeled[1]), hard).item()
    silent, other = trial_of(uda_weight=0.0, label_smoothing=0.0)
    logits = [other.teacher(images) for images in (batch.labeled[0], *batch.unlabeled)]
    descend(silent.optimizer, other.teacher_losses(tuple(logits), hard, torch.tensor(0.0), batch, 0.5).total)  # type: ignore[arg-type]
    untaught = F.cross_entropy(other.teacher(batch.unlabeled[1]), hard).item()
    assert before > 0
    assert (taught < untaught) == surer


def test_the_student_learns_the_teachers_hard_labels_of_the_strong_views() -> None:
    trial, method = trial_of(label_smoothing=0.0)
    batch, mirror = batch_of(method.views), student_of(model="mlp")
    with torch.no_grad():
        hard = method.teacher(batch.unlabeled[1]).argmax(1)
    optimizer = torch.optim.SGD(mirror.parameters(), lr=0.05, momentum=0.9)
    F.cross_entropy(mirror(batch.unlabeled[1]), hard).backward()
    optimizer.step()
    take(trial)
    assert torch.allclose(weights(trial.student), weights(mirror), atol=1e-6)


def test_the_student_never_sees_a_true_label_before_it_is_fine_tuned() -> None:
    after = []
    for shift in (0, 1):
        trial, method = trial_of()
        batch = batch_of(method.views)
        batch = type(batch)(**{**vars(batch), "labels": (batch.labels + shift) % CLASSES})
        trial.student.train()
        method.train_step(trial.student, trial.optimizer, batch, 0.5)
        after.append(weights(trial.student))
    assert torch.equal(*after)


def test_the_teacher_trains_alone_at_first_and_the_student_alone_at_last() -> None:
    trial, method = trial_of(student_wait=0.3, finetune=0.3)
    for progress, who in ((0.0, "teacher"), (0.5, "both"), (0.9, "student")):
        before = weights(trial.student), weights(method.teacher)
        take(trial, progress)
        moved = not torch.equal(before[0], weights(trial.student)), not torch.equal(before[1], weights(method.teacher))
        assert moved == {"teacher": (False, True), "both": (True, True), "student": (True, False)}[who], progress


def test_each_network_takes_one_step_of_the_shared_optimizer() -> None:
    trial, method = trial_of()
    take(trial)
    moments = trial.optimizer.state
    expected = len(list(trial.student.parameters())) + len(list(method.teacher.parameters()))
    assert len(moments) == expected
    first = [moments[one]["momentum_buffer"].clone() for one in method.teacher.parameters()]
    optimizer_loss = trial.student(batch_of(method.views).labeled[0]).sum()
    descend(trial.optimizer, optimizer_loss)
    second = [moments[one]["momentum_buffer"] for one in method.teacher.parameters()]
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_gentle_steps_are_shorter_and_without_decay_and_the_settings_come_back() -> None:
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([parameter], lr=1.0, weight_decay=0.5)
    with gently(optimizer, 0.1):
        descend(optimizer, parameter.sum())
    assert parameter.item() == pytest.approx(1.9)
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_teacher_from_the_student_has_its_weights() -> None:
    same = Trial(settings_of("meta_pseudo_labels", teacher="student"))
    fresh = Trial(settings_of("meta_pseudo_labels"))
    assert torch.equal(weights(same.student), weights(same.method.teacher))
    assert not torch.equal(weights(fresh.student), weights(fresh.method.teacher))
