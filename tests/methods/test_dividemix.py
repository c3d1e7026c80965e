"""DivideMix: the mixture on losses, co-refinement, co-guessing, two networks that are one classifier."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftrain.models import ModelSettings
from selftrain.models.classifier import Classifier, joined, members
from selftrain.ssl_tasks.methods.base import twin
from selftrain.ssl_tasks.methods.dividemix import DivideMix, clean_probability, mean_loss, mean_of_views, mean_where
from selftrain.ssl_tasks.trained.model import Card, load_trained, save_trained
from tests.methods.trial import (
    CLASSES,
    PROBLEM,
    TinyPools,
    Trial,
    batch_of,
    images_of,
    problem_of,
    settings_of,
    student_of,
)


def method_of(**knobs: object) -> DivideMix:
    method = DivideMix(settings_of("dividemix", **knobs), PROBLEM)  # type: ignore[arg-type]
    method.another = student_of
    method.before_training(student_of())
    return method


def test_two_heaps_of_losses_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(0.2, 0.05, 60), rng.normal(3.0, 0.3, 40)])
    clean = clean_probability(losses)
    assert clean[:60].min() > 0.99
    assert clean[60:].max() < 0.01


def test_equal_losses_are_all_clean_and_so_is_a_single_one() -> None:
    assert clean_probability(np.full(5, 2.0)).tolist() == [1] * 5
    assert clean_probability(np.array([0.7])).tolist() == [1]


def test_the_division_is_the_same_every_time_and_independent_of_scale() -> None:
    losses = np.random.default_rng(1).exponential(size=200)
    assert np.array_equal(clean_probability(losses), clean_probability(losses))
    np.testing.assert_allclose(clean_probability(losses), clean_probability(100 * losses + 5), atol=1e-6)


def test_the_posterior_is_the_formula_of_two_gaussians() -> None:
    from sklearn.mixture import GaussianMixture

    losses = np.random.default_rng(2).gamma(2.0, size=100)
    column = ((losses - losses.min()) / np.ptp(losses))[:, None]
    fit = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(column)
    density = fit.weights_ * np.exp(-((column - fit.means_.T) ** 2) / (2 * fit.covariances_.ravel()))
    density /= np.sqrt(fit.covariances_.ravel())
    expected = (density / density.sum(axis=1, keepdims=True))[:, fit.means_.argmin()]
    np.testing.assert_allclose(clean_probability(losses), expected, rtol=1e-6)


def test_losses_of_several_epochs_are_stretched_and_averaged_where_there_were_any() -> None:
    nan = [np.nan] * 3
    assert mean_loss(np.array([[0.0, 1.0, 2.0], nan])).tolist() == [0, 0.5, 1]
    assert mean_loss(np.array([[0.0, 1.0, 2.0], [8.0, 4.0, 4.0]])).tolist() == [0.5, 0.25, 0.5]
    assert mean_loss(np.array([[3.0, 3.0, 3.0]])).tolist() == [0, 0, 0]


def test_means_of_views_and_of_what_a_mask_counts() -> None:
    probs = torch.tensor([[1.0], [2.0], [3.0], [4.0], [10.0], [20.0]])
    labeled, unlabeled = mean_of_views(probs, 2)
    assert labeled.flatten().tolist() == [2, 3]
    assert unlabeled.flatten().tolist() == [15]
    assert mean_of_views(probs[:4], 2)[1].shape == (0, 1)
    assert mean_where(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([1.0, 1.0, 0.0])) == 2
    assert mean_where(torch.ones(3), torch.zeros(3)) == 0


class Constant(nn.Module):
    """Says the same of every image."""

    def __init__(self, probs: list[float]) -> None:
        super().__init__()
        self.probs = torch.tensor(probs)

    def forward(self, images: Tensor) -> Tensor:
        return self.probs.log().expand(len(images), -1)


def test_trusted_labels_are_refined_and_all_others_guessed_by_both() -> None:
    method = method_of(temperature=0.5)
    own, other = [0.4, 0.2, 0.2, 0.2], [0.1, 0.7, 0.1, 0.1]
    labels, clean = torch.tensor([1, 1]), torch.tensor([0.75, 0.5])
    targets = method.targets(Constant(own), Constant(other), torch.zeros(6, 1), clean, labels)  # type: ignore[arg-type]
    refined = 0.75 * np.eye(4)[1] + 0.25 * np.array(own)
    guess = (np.array(own) + np.array(other)) / 2
    sharp = [(row**2 / (row**2).sum()) for row in (refined, guess)]
    np.testing.assert_allclose(targets[[0, 2]].numpy(), [sharp[0]] * 2, rtol=1e-5)  # both views of the trusted one
    np.testing.assert_allclose(targets[[1, 3, 4, 5]].numpy(), [sharp[1]] * 4, rtol=1e-5)  # 0.5 is not above 0.5
    assert not targets.requires_grad


def test_without_mixing_the_whole_loss_is_the_papers() -> None:
    settings = settings_of("dividemix", warmup=0.0, ramp_up=0.5, alpha=0.0, weight=25.0)
    trial = Trial(settings, student=student_of(model="mlp"))
    method, batch = trial.method, batch_of(trial.method.views)
    assert isinstance(method, DivideMix)
    method.clean.copy_(torch.tensor([0.9, 0.2, 0.7, 0.4, 0, 0, 0, 0]).expand(2, PROBLEM.num_labeled))
    with torch.no_grad():
        probs = [
            [network(images).softmax(1).numpy().astype(np.float64) for images in (*batch.labeled, *batch.unlabeled)]
            for network in (trial.student, method.second)
        ]
    guessed = [np.mean([net[at] for net in probs for at in views], axis=0) for views in ((0, 1), (2, 3))]
    expected = 0.0
    for own in probs:
        w, refined = np.array([[0.9], [0.2], [0.7], [0.4]]), (own[0] + own[1]) / 2
        labels = np.where(w > 0.5, w * np.eye(CLASSES)[batch.labels] + (1 - w) * refined, guessed[0])
        targets = [one**2 / (one**2).sum(1, keepdims=True) for one in (labels, labels, guessed[1], guessed[1])]
        clean = [0, 2]
        expected += -np.mean([(targets[at] * np.log(own[at])).sum(1)[clean] for at in (0, 1)])
        others = [((own[at] - targets[at]) ** 2)[[1, 3]] for at in (0, 1)]
        others += [(own[at] - targets[at]) ** 2 for at in (2, 3)]
        expected += 25 * 0.5 * np.concatenate(others).mean()
        mean = np.concatenate(own).mean(0)
        expected += (np.log(1 / CLASSES / mean) / CLASSES).sum()
    assert method.loss(trial.student, batch, 0.25).total.item() == pytest.approx(expected, rel=1e-4)


def test_the_networks_divide_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(settings_of("dividemix", warmup=0.0))
    method = trial.method
    assert isinstance(method, DivideMix)
    method.clean.copy_(torch.tensor([[0.25], [0.75]]).expand(2, PROBLEM.num_labeled))
    asked = {}
    original = method.divided

    def spy(network: Classifier, other: Classifier, clean: Tensor, *rest: object) -> object:
        asked["student" if network is trial.student else "second"] = clean.unique().tolist()
        return original(network, other, clean, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(method, "divided", spy)
    method.loss(trial.student, batch_of(method.views), 0.5)
    assert asked == {"student": [0.75], "second": [0.25]}


@pytest.mark.parametrize("clean", [0.0, 1.0])
@pytest.mark.parametrize("unlabeled", [True, False])
def test_an_empty_half_costs_nothing_and_breaks_nothing(clean: float, unlabeled: bool) -> None:
    trial = Trial(settings_of("dividemix", warmup=0.0, use_unlabeled=unlabeled))
    trial.method.clean.fill_(clean)
    batch = batch_of(trial.method.views)
    losses = trial.method.loss(trial.student, batch, 1.0)
    losses.total.backward()
    assert losses.total.isfinite()
    if clean == 0:
        assert losses.logs["supervised"] == 0
    if clean == 1 and not unlabeled:
        assert losses.logs["unsupervised"] == 0


def test_a_fully_labelled_set_asks_for_no_unlabelled_view() -> None:
    assert method_of(use_unlabeled=False).views.unlabeled == ()
    assert method_of().views.unlabeled == ("weak", "weak")


def test_clean_labels_are_never_divided() -> None:
    trial = Trial(settings_of("dividemix", warmup=0.0, labels="clean"))
    for number in range(3):
        assert trial.step(number).logs["clean"] == 1
    assert trial.method.losses.isnan().all()


def test_the_first_division_is_made_where_the_warm_up_ends() -> None:
    problem = problem_of(unlabeled_batch=2)
    trial = Trial(settings_of("dividemix", warmup=0.5), problem=problem)
    assert trial.method.refresh_every() > problem.steps
    for number, divided in ((0, False), (1, False), (2, False), (3, True)):
        trial.step(number)
        assert bool((trial.method.clean < 1).any()) == divided, number


def test_losses_are_judged_without_noise_and_modes_are_given_back() -> None:
    trial = Trial(settings_of("dividemix", warmup=0.0), student=student_of(dropout=0.5))
    trial.student.train()
    trial.method.before_epoch(trial.student, TinyPools())
    (_, images, labels), *_ = TinyPools().labeled()
    expected = nn.functional.cross_entropy(trial.student.eval()(images), labels, reduction="none")
    assert torch.allclose(trial.method.losses[0, 0], expected)
    assert trial.method.clean.min() < trial.method.clean.max()


def test_the_warm_up_is_cross_entropy_of_both_and_for_asymmetric_noise_less_entropy() -> None:
    totals = []
    for asymmetric in (False, True):
        trial = Trial(settings_of("dividemix", warmup=1.0, asymmetric=asymmetric), student=student_of(model="mlp"))
        totals.append(trial.method.loss(trial.student, batch_of(trial.method.views), 0.5))
    with torch.no_grad():
        images, labels = batch_of(trial.method.views).labeled[0], torch.arange(4)
        logits = [trial.student(images), trial.method.second(images)]
        losses = sum(nn.functional.cross_entropy(one, labels) for one in logits)
        entropy = sum(-(one.softmax(1) * one.log_softmax(1)).sum(1).mean() for one in logits)
    assert totals[0].total.item() == pytest.approx(float(losses), rel=1e-5)
    assert totals[1].total.item() == pytest.approx(float(losses - entropy), rel=1e-4)


def test_both_networks_learn() -> None:
    trial = Trial(settings_of("dividemix", warmup=0.0))
    before = [one.clone() for one in (*trial.student.parameters(), *trial.method.second.parameters())]
    trial.step(1)
    after = [*trial.student.parameters(), *trial.method.second.parameters()]
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("weights", ["scratch", "student"])
def test_a_twin_has_the_weights_of_another_network_or_the_students(weights: Literal["scratch", "student"]) -> None:
    student, another = student_of().to(memory_format=torch.channels_last), student_of(seed=5)
    expected = {"scratch": another, "student": student}[weights]
    student.body.requires_grad_(False)
    other = twin(student, weights, lambda: another)
    for mine, theirs, given in zip(other.parameters(), student.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, given)
        assert mine.stride() == theirs.stride()
        assert mine.data_ptr() not in (theirs.data_ptr(), given.data_ptr())
        assert mine.requires_grad == theirs.requires_grad
    assert other.head.weight.requires_grad


def test_the_evaluated_network_gives_the_mean_of_both_logits() -> None:
    trial = Trial(settings_of("dividemix"))
    images = images_of(5, 3)
    both = trial.method.evaluated(trial.student).eval()
    with torch.no_grad():
        expected = (trial.student.eval()(images) + trial.method.second.eval()(images)) / 2
        assert torch.allclose(both(images), expected, atol=1e-5)
    assert members(both) == 2
    assert members(trial.student) == 1


def test_an_ensemble_is_saved_and_loaded_as_a_model(tmp_path: Path) -> None:
    pair = joined([student_of(seed, model="small_cnn") for seed in (1, 2)]).eval()
    settings = ModelSettings(name="small_cnn", width=8)
    names = tuple(map(str, range(CLASSES)))
    card = Card(model=settings, classes=names, in_channels=1, image_size=8, mean=(0.5,), std=(0.25,), members=2)
    save_trained(tmp_path, pair, card)
    loaded = load_trained(tmp_path, "cpu", "fp32")
    raw = torch.randint(0, 256, (4, 8, 8, 1), dtype=torch.uint8)
    expected = pair(loaded.normalise(raw))
    assert torch.allclose(loaded.logits(raw), expected, atol=1e-5)
    assert loaded.features(raw).shape == (4, pair.num_features)
