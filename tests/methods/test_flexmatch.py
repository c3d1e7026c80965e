"""FlexMatch: thresholds by learning status, and FixMatch where all classes are alike."""

from typing import Any

import pytest
import torch

from selftrain.ssl_tasks.methods.flexmatch import FlexMatch, class_thresholds, learning_status
from selftrain.ssl_tasks.settings.methods import FixMatchSettings, FlexMatchSettings
from tests.methods.trial import CLASSES, Trial, batch_of, pixel_batch, pixel_student, pixels, problem_of, student_of

SURE, UNSURE = [5.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]  # confidence .98 and .48


def flexmatch(unlabeled: int = 4, **knobs: Any) -> tuple[Trial, FlexMatch]:
    trial = Trial(FlexMatchSettings(**knobs), problem_of(num_unlabeled=unlabeled), pixel_student())
    assert isinstance(trial.method, FlexMatch)
    return trial, trial.method


def test_status_is_the_count_over_the_largest_count() -> None:
    remembered = torch.tensor([0, 0, 0, 1, -1])
    assert learning_status(remembered, 3, warmup=True).tolist() == pytest.approx([1, 1 / 3, 0])


def test_in_the_warm_up_images_without_a_label_are_the_largest_count() -> None:
    remembered = torch.tensor([0, 0, 1, -1, -1, -1, -1])
    assert learning_status(remembered, 3, warmup=True).tolist() == pytest.approx([2 / 4, 1 / 4, 0])
    assert learning_status(remembered, 3, warmup=False).tolist() == pytest.approx([1, 1 / 2, 0])
    assert learning_status(torch.tensor([-1, -1]), 3, warmup=False).tolist() == [0, 0, 0]


def test_the_convex_map_is_x_over_two_minus_x() -> None:
    status = torch.tensor([1.0, 0.5, 0.0])
    assert class_thresholds(status, 0.9, "convex").tolist() == pytest.approx([0.9, 0.9 / 3, 0])
    assert class_thresholds(status, 0.9, "linear").tolist() == pytest.approx([0.9, 0.45, 0])


def test_all_classes_alike_is_fixmatch() -> None:
    flex = Trial(FlexMatchSettings(threshold=0.7), student=student_of())
    fix = Trial(FixMatchSettings(threshold=0.7), student=student_of())
    assert isinstance(flex.method, FlexMatch)
    flex.method.status.fill_(1)
    batch = batch_of(fix.method.views)
    found, expected = (one.method.loss(one.student, batch, 0.5) for one in (flex, fix))
    assert 0 < expected.logs["mask"] < 1
    assert torch.equal(found.total, expected.total)


def test_status_starts_at_zero_so_that_every_image_counts() -> None:
    trial, method = flexmatch()
    batch = pixel_batch([pixels(UNSURE)], [1], [pixels(SURE, UNSURE), pixels(SURE, UNSURE)])
    assert method.loss(trial.student, batch, 0.0).logs["mask"] == 1


def test_only_images_above_the_fixed_threshold_are_remembered() -> None:
    trial, method = flexmatch()
    batch = pixel_batch([pixels(UNSURE)], [1], [pixels(SURE, UNSURE), pixels(SURE, UNSURE)], [3, 1])
    method.loss(trial.student, batch, 0.0)
    assert method.remembered.tolist() == [-1, -1, -1, 0]
    assert method.status.tolist() == pytest.approx([1 / 3, 0, 0, 0])


def test_the_mask_uses_the_status_from_before_the_batch() -> None:
    trial, method = flexmatch(unlabeled=2, warmup=False)
    weak = [0.5, 0.0, 0.0, 0.0]  # confidence .35 for class 0
    batch = pixel_batch([pixels(UNSURE)], [1], [pixels(SURE, weak), pixels(SURE, weak)])
    assert method.loss(trial.student, batch, 0.0).logs["mask"] == 1
    assert method.status[0] == 1
    assert method.loss(trial.student, batch, 0.0).logs["mask"] == 0.5


def test_the_last_label_is_remembered() -> None:
    _, method = flexmatch()
    method.remember(torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([1.0, 1.0]))
    method.remember(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([1.0, 0.0]))
    assert method.remembered.tolist() == [1, 3, -1, -1]


def test_status_stays_where_every_image_has_the_same_label() -> None:
    _, method = flexmatch(unlabeled=2)
    method.remember(torch.tensor([0]), torch.tensor([2]), torch.tensor([1.0]))
    before = method.status.clone()
    method.remember(torch.tensor([1]), torch.tensor([2]), torch.tensor([1.0]))
    assert method.remembered.tolist() == [2, 2]
    assert torch.equal(method.status, before)


def test_threshold_one_remembers_nothing() -> None:
    _, method = flexmatch(threshold=1.0)
    trial = Trial(FlexMatchSettings(threshold=1.0), student=pixel_student())
    batch = pixel_batch([pixels(UNSURE)], [1], [pixels([1000.0, 0, 0, 0]), pixels(SURE)])
    method.loss(trial.student, batch, 0.0)
    assert method.remembered.tolist() == [-1] * CLASSES
