"""Mean Teacher: a target without a gradient that still gives one, and an average that follows."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.methods.mean_teacher import MeanTeacher, consistency_loss
from selftrain.ssl_tasks.settings.methods import MeanTeacherSettings
from tests.methods.trial import Trial, gradients, pixel_batch, pixel_student, pixels, softmax

STUDENT = [[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
TEACHER = [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]


def trial_of(**knobs: Any) -> Trial:
    return Trial(MeanTeacherSettings(**knobs))


def teacher_of(trial: Trial) -> torch.nn.Module:
    assert isinstance(trial.method, MeanTeacher)
    return trial.method.teacher.network


def test_mse_is_over_images_and_classes() -> None:
    expected = ((softmax(STUDENT) - softmax(TEACHER)) ** 2).mean()
    assert consistency_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), "mse").item() == pytest.approx(expected)


def test_kl_is_of_the_teacher_to_the_student() -> None:
    p, q = softmax(TEACHER), softmax(STUDENT)
    expected = (p * np.log(p / q)).sum(1).mean()
    assert consistency_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), "kl").item() == pytest.approx(expected)


def test_consistency_is_over_all_images_labelled_ones_included() -> None:
    cases = (("sigmoid", 1.0, 1.0), ("sigmoid", 0.25, math.exp(-1.25)), ("linear", 0.25, 0.5), ("linear", 0.0, 0.0))
    first, second = pixels(*STUDENT), pixels(*TEACHER)
    batch = pixel_batch([first[:1], second[:1]], [1], [first[1:], second[1:]])
    consistency = ((softmax(STUDENT) - softmax(TEACHER)) ** 2).mean()
    supervised = -math.log(softmax(STUDENT)[0, 1])
    for ramp, progress, share in cases:
        trial = Trial(MeanTeacherSettings(weight=8.0, ramp_up=0.5, ramp=ramp), student=pixel_student())  # type: ignore[arg-type]
        found = trial.method.loss(trial.student, batch, progress).total.item()
        assert found == pytest.approx(supervised + 8 * share * consistency)


@pytest.mark.parametrize("consistency", ["mse", "kl"])
def test_the_consistency_loss_has_a_gradient_for_the_student_and_none_for_the_teacher(consistency: str) -> None:
    student, teacher = torch.tensor(STUDENT, requires_grad=True), torch.tensor(TEACHER, requires_grad=True)
    consistency_loss(student, teacher, consistency).backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0
    assert teacher.grad is None


def test_the_teacher_gets_no_gradient_and_is_not_optimised() -> None:
    trial = trial_of()
    trial.step(0)
    assert gradients(teacher_of(trial)) == []
    assert gradients(trial.student)


def test_decay_zero_follows_the_student() -> None:
    trial = trial_of(decay=0.0, decay_warmup=False)
    trial.step(0)
    for mine, theirs in zip(teacher_of(trial).parameters(), trial.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_decay_one_stays_where_it_began() -> None:
    trial = trial_of(decay=1.0, decay_warmup=False)
    before = [one.clone() for one in teacher_of(trial).parameters()]
    trial.step(0)
    assert all(torch.equal(one, other) for one, other in zip(before, teacher_of(trial).parameters(), strict=True))


def test_the_warm_up_is_a_plain_mean_of_the_first_weights() -> None:
    trial = trial_of(decay=0.999, decay_warmup=True)
    seen = [trial.student.head.weight.detach().clone()]
    for number in range(3):
        trial.step(number)
        seen.append(trial.student.head.weight.detach().clone())
    torch.testing.assert_close(teacher_of(trial).head.weight, torch.stack(seen).mean(0))


def test_only_parameters_are_averaged_and_the_teacher_makes_its_own_statistics() -> None:
    trial = trial_of(decay=0.0, decay_warmup=False)
    trial.step(0)
    mine = dict(teacher_of(trial).named_buffers())
    theirs = dict(trial.student.named_buffers())
    moved = [name for name in mine if name.endswith("running_mean") and mine[name].abs().max() > 0]
    assert moved
    assert all(not torch.equal(mine[name], theirs[name]) for name in moved)


def test_the_teacher_is_what_is_evaluated() -> None:
    trial = trial_of()
    assert trial.method.evaluated(trial.student) is teacher_of(trial)
