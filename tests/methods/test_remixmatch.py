"""ReMixMatch: alignment, anchoring, rotation."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from selftrain.ssl_tasks.methods.math import align_distribution, frozen_statistics
from selftrain.ssl_tasks.methods.remixmatch import ReMixMatch, turned
from tests.methods.trial import CLASSES, PROBLEM, Trial, batch_of, gradients, settings_of, student_of

UNIFORM = type(PROBLEM)(**{**vars(PROBLEM), "class_prior": (0.25,) * 4})


class Fixed(nn.Module):
    """Predicts the same rows whatever it is shown."""

    def __init__(self, probs: torch.Tensor) -> None:
        super().__init__()
        self.probs = probs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.probs.log()


def test_uniform_marginals_align_nothing() -> None:
    method = ReMixMatch(settings_of("remixmatch", temperature=1.0), UNIFORM)
    probs = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.3, 0.4, 0.1]])
    assert torch.allclose(method.guess(Fixed(probs), probs), probs, atol=1e-6)  # type: ignore[arg-type]


def test_alignment_multiplies_by_wanted_over_seen_and_then_sharpens() -> None:
    method = ReMixMatch(settings_of("remixmatch", temperature=0.5, alignment_batches=2), PROBLEM)
    one, two = torch.tensor([[0.7, 0.1, 0.1, 0.1]]), torch.tensor([[0.25, 0.25, 0.4, 0.1]])
    method.guess(Fixed(one), one)  # type: ignore[arg-type]
    guess = method.guess(Fixed(two), two)  # type: ignore[arg-type]
    seen = (one[0].numpy() + 0.25) / 2  # the first batch, and the uniform start of the other
    aligned = two[0].numpy() * np.array(PROBLEM.class_prior) / seen
    aligned /= aligned.sum()
    np.testing.assert_allclose(guess[0].numpy(), aligned**2 / (aligned**2).sum(), rtol=1e-5)


def test_memory_keeps_the_unaligned_means_of_the_last_batches() -> None:
    method = ReMixMatch(settings_of("remixmatch", alignment_batches=2), PROBLEM)
    means = torch.eye(CLASSES)[:3] * 0.6 + 0.1
    for mean in means:
        method.guess(Fixed(mean[None]), mean)  # type: ignore[arg-type]
    assert torch.allclose(method.recent, torch.stack([means[2], means[1]]))


def test_aligned_guesses_have_the_wanted_mean_where_all_guesses_are_alike() -> None:
    probs = torch.tensor([[0.5, 0.2, 0.2, 0.1]] * 3)
    wanted = torch.tensor(PROBLEM.class_prior)
    assert torch.allclose(align_distribution(probs, wanted, probs[0])[0], wanted, atol=1e-5)


def test_turning_four_times_is_standing_still() -> None:
    images = torch.arange(32.0).reshape(2, 1, 4, 4)
    assert torch.equal(turned(images, torch.tensor([0, 0])), images)
    quarters = turned(images, torch.tensor([1, 2]))
    assert torch.equal(quarters[0], images[0].rot90(1, (1, 2)))
    assert torch.equal(quarters[1], images[1].flip(1, 2))


def test_the_rotation_head_learns_and_its_loss_starts_near_log_four() -> None:
    trial = Trial(settings_of("remixmatch", views=1), student=student_of(sharpness=1.0))
    trial.student.train()
    losses = trial.method.loss(trial.student, batch_of(trial.method.views), 0.5)
    assert losses.logs["rotation"].item() == pytest.approx(np.log(4), abs=0.7)
    losses.total.backward()
    assert all(grad.abs().sum() > 0 for grad in gradients(trial.method.rotation))


def test_each_part_has_its_weight() -> None:
    def loss(**knobs: float) -> tuple[float, dict[str, float]]:
        trial = Trial(settings_of("remixmatch", views=2, **knobs))
        torch.manual_seed(7)
        losses = trial.method.loss(trial.student, batch_of(trial.method.views), 1.0)
        return losses.total.item(), {name: value.item() for name, value in losses.logs.items()}

    total, logs = loss(weight=3.0, anchor_weight=0.25, rotation_weight=2.0)
    parts = logs["supervised"] + 3 * logs["unsupervised"] + 0.25 * logs["anchored"] + 2 * logs["rotation"]
    assert total == pytest.approx(parts, rel=1e-5)


def test_anchoring_is_the_cross_entropy_of_the_first_strong_view_with_the_weak_guess() -> None:
    trial = Trial(settings_of("remixmatch", views=2), problem=UNIFORM)
    batch = batch_of(trial.method.views)
    trial.student.train()
    with torch.no_grad(), frozen_statistics(trial.student):
        weak = trial.student(batch.unlabeled[0]).softmax(1).numpy()
        strong = F.log_softmax(trial.student(batch.unlabeled[1]), 1).numpy()
    target = weak**2 / (weak**2).sum(axis=1, keepdims=True)
    expected = -(target * strong).sum(axis=1).mean()
    logs = trial.method.loss(trial.student, batch, 1.0).logs
    assert logs["anchored"].item() == pytest.approx(expected, rel=1e-4)


def test_without_mixing_the_whole_loss_is_the_papers() -> None:
    settings = settings_of("remixmatch", views=2, alpha=0.0, weight=3.0, anchor_weight=0.25, rotation_weight=0.0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    trial = Trial(settings, student=student_of(model="mlp"))
    batch = batch_of(trial.method.views)
    with torch.no_grad():
        labeled = F.log_softmax(trial.student(batch.labeled[0]), 1).numpy()
        views = [trial.student(images) for images in batch.unlabeled]
    aligned = views[0].softmax(1).numpy() * shares / 0.25  # no batch before: the model's mean is uniform
    sharp = (aligned / aligned.sum(1, keepdims=True)) ** 2
    guess = sharp / sharp.sum(1, keepdims=True)
    losses = [-(guess * F.log_softmax(view, 1).numpy()).sum(1) for view in views]
    supervised = -labeled[np.arange(4), batch.labels.numpy()].mean()
    for progress, ramp in ((1.0, 1.0), (1 / 128, 0.5), (0.0, 0.0)):
        fresh = Trial(settings, student=student_of(model="mlp"))
        found = fresh.method.loss(fresh.student, batch, progress).total.item()
        expected = supervised + ramp * (3 * np.mean(losses) + 0.25 * losses[1].mean())
        assert found == pytest.approx(expected, rel=1e-4), progress


def test_one_pass_alone_moves_the_statistics() -> None:
    trial = Trial(settings_of("remixmatch", views=3))
    trial.student.train()
    trial.method.loss(trial.student, batch_of(trial.method.views), 1.0)
    norms = [module for module in trial.student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}


def test_labelled_images_are_strong_and_the_anchor_weak() -> None:
    views = ReMixMatch(settings_of("remixmatch", views=2), PROBLEM).views
    assert (views.labeled, views.unlabeled) == (("strong",), ("weak", "strong", "strong"))
