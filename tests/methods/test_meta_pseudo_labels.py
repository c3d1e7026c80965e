"""Meta Pseudo Labels: who steps when, the feedback and its sign, UDA on the teacher, fine-tuning."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.methods.math import soft_cross_entropy
from selftrain.ssl_tasks.methods.meta_pseudo_labels import MetaPseudoLabels, at_rate, descend, uda_loss
from tests.methods.trial import CLASSES, Trial, batch_of, problem_of, settings_of, student_of

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
    usual = 0.9 * 0.5 + 0.1 * (before - after)
    assert method.usual.item() == pytest.approx(usual, rel=1e-4)
    assert feedback == pytest.approx(before - after - usual, rel=1e-3)


def test_the_official_codes_feedback_has_the_opposite_sign() -> None:
    official, theory = (take(trial_of(feedback_sign=sign)[0])["feedback"] for sign in ("official", "theory"))
    assert official == -theory
    assert official != 0


@pytest.mark.parametrize(("feedback", "surer"), [(1.0, True), (-1.0, False)])
def test_positive_feedback_raises_the_teachers_confidence_in_its_labels(feedback: float, surer: bool) -> None:
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
    with at_rate(optimizer, 0.1, decay=False):
        descend(optimizer, parameter.sum())
    assert parameter.item() == pytest.approx(1.9)
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_teacher_from_the_student_has_its_weights() -> None:
    same = Trial(settings_of("meta_pseudo_labels", teacher="student"))
    fresh = Trial(settings_of("meta_pseudo_labels"))
    assert torch.equal(weights(same.student), weights(same.method.teacher))
    assert not torch.equal(weights(fresh.student), weights(fresh.method.teacher))


def expected_gradients(sign: str | None) -> tuple[Tensor, Tensor]:
    """The teacher's gradient that the feedback makes, in the mean over the labels that the teacher may draw, and the
    exact gradient of the objective: the labelled loss of a student that has learnt these labels."""
    torch.manual_seed(0)
    rate, classes = 0.5, 3
    inputs = torch.randn(4, 5), torch.randn(2, 5)  # labelled images, and two unlabelled ones: 9 pairs of labels
    truth = torch.tensor([0, 1, 2, 0])
    teacher, student = torch.nn.Linear(5, classes).double(), torch.nn.Linear(5, classes).double()
    labeled, unlabeled = (images.double() for images in inputs)
    batch = Batch((labeled,), truth, truth, (unlabeled, unlabeled), torch.arange(2), unlabeled_truth=torch.empty(0))
    settings = {} if sign is None else {"feedback_sign": sign}
    objective, estimated = torch.zeros((), dtype=torch.float64), torch.zeros(5 * classes + classes).double()
    for hard in torch.cartesian_prod(torch.arange(classes), torch.arange(classes)):
        chance = teacher(unlabeled).log_softmax(1)[torch.arange(2), hard].sum().exp()
        ours = copy.deepcopy(student)
        grads = torch.autograd.grad(F.cross_entropy(ours(unlabeled), hard), list(ours.parameters()))
        learnt = [(one - rate * grad).detach() for one, grad in zip(ours.parameters(), grads, strict=True)]
        objective = objective + chance * F.cross_entropy(F.linear(labeled, *learnt), truth)
        method = MetaPseudoLabels(
            settings_of("meta_pseudo_labels", **AT_ONCE, **settings, uda_weight=0.0, label_smoothing=0.0),  # type: ignore[arg-type]
            problem_of(num_classes=classes),
        )
        optimizer = torch.optim.SGD(ours.parameters(), lr=rate)
        feedback = method.teach(ours, optimizer, batch, hard, 0.5)  # type: ignore[arg-type]
        gradients = []
        for factor in (feedback, torch.zeros_like(feedback)):
            logits = teacher(labeled), teacher(unlabeled), teacher(unlabeled)
            total = method.teacher_losses(logits, hard, factor, batch, 0.5).total
            gradients.append(flat(torch.autograd.grad(total, list(teacher.parameters()))))
        estimated = estimated + chance.detach() * (gradients[0] - gradients[1])
    return estimated, flat(torch.autograd.grad(objective, list(teacher.parameters())))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in tensors])


@pytest.mark.parametrize(("sign", "cosine"), [(None, 1.0), ("theory", 1.0), ("official", -1.0)])
def test_the_default_feedback_is_the_exact_meta_gradient_over_all_labels(sign: str | None, cosine: float) -> None:
    estimated, exact = expected_gradients(sign)
    assert exact.norm() > 1e-3
    assert F.cosine_similarity(estimated, exact, dim=0).item() == pytest.approx(cosine, abs=1e-5)
    # The loss is the mean over the two unlabelled images, the objective's gradient a sum; the feedback loses a
    # hundredth to its moving average.
    assert (estimated.norm() / exact.norm()).item() == pytest.approx(0.99 / 2, rel=1e-3)


def test_the_student_warms_up_from_when_it_starts_as_its_teacher_did() -> None:
    settings = settings_of("meta_pseudo_labels", student_wait=0.2)
    method = MetaPseudoLabels(settings, problem_of(steps=101, warmup_steps=40))  # type: ignore[arg-type]
    for step in range(20, 101):
        teacher = min(1.0, (step + 1) / 40)
        student = min(1.0, (step - 20 + 1) / 40)
        assert teacher * method.student_rate(step / 100) == pytest.approx(student), step
    alone = MetaPseudoLabels(settings, problem_of(steps=101))  # type: ignore[arg-type]
    assert {alone.student_rate(step / 100) for step in range(20, 101)} == {1.0}
