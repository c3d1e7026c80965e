"""Label propagation: the graph, the diffusion, the weights."""

import numpy as np
import pytest
import torch
from scipy import sparse

from selftrain.ssl_tasks.data.batch import Views
from selftrain.ssl_tasks.methods.label_propagation import (
    LabelPropagation,
    certainty,
    diffuse,
    nearest_neighbors,
    normalised_graph,
)
from tests.methods.trial import CLASSES, PROBLEM, TinyPools, Trial, batch_of, problem_of, settings_of, student_of


def blobs(per_class: int, spread: float = 0.2) -> tuple[torch.Tensor, np.ndarray]:
    """Features around one axis per class, class after class."""
    torch.manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    return torch.eye(CLASSES)[labels] + spread * torch.randn(len(labels), CLASSES), labels.numpy()


def test_neighbours_are_those_of_a_full_sort_without_oneself() -> None:
    features, _ = blobs(6)
    similarity, index = nearest_neighbors(features, 3)
    normal = features / features.norm(dim=1, keepdim=True)
    full = (normal @ normal.T).numpy()
    np.fill_diagonal(full, -np.inf)
    order = np.argsort(-full, axis=1)[:, :3]
    assert np.array_equal(index, order)
    np.testing.assert_allclose(similarity, np.take_along_axis(full, order, axis=1), rtol=1e-5)


def test_neighbours_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = blobs(8)
    whole = nearest_neighbors(features, 5)
    monkeypatch.setattr("selftrain.ssl_tasks.methods.label_propagation.CHUNK", 7)
    assert np.array_equal(whole[1], nearest_neighbors(features, 5)[1])


def test_copies_of_an_image_are_neighbours_and_no_image_its_own() -> None:
    features = torch.eye(3)[[0, 0, 1, 2]]
    _, index = nearest_neighbors(features, 1)
    assert index[0, 0] == 1
    assert index[1, 0] == 0


def test_the_graph_by_hand() -> None:
    similarity = np.array([[0.5], [0.5], [-0.3]])
    index = np.array([[1], [0], [0]])
    graph = normalised_graph(similarity, index, 3.0).toarray()
    # edges 0-1 of weight 2 · 0.5³ = 0.25 both ways; the negative similarity is no edge
    np.testing.assert_allclose(graph, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_the_graph_is_the_dense_formula() -> None:
    features, _ = blobs(6, spread=0.5)
    similarity, index = nearest_neighbors(features, 4)
    dense = np.zeros((24, 24))
    for row in range(24):
        dense[row, index[row]] = np.maximum(similarity[row], 0) ** 3
    dense = dense + dense.T
    degree = dense.sum(axis=1)
    expected = dense / np.sqrt(np.outer(degree, degree))
    graph = normalised_graph(similarity, index, 3.0)
    np.testing.assert_allclose(graph.toarray(), expected, rtol=1e-6, atol=1e-12)
    assert graph.diagonal().max() == 0


def test_diffusion_is_the_dense_solution() -> None:
    features, labels = blobs(6, spread=0.5)
    graph = normalised_graph(*nearest_neighbors(features, 4), 3.0)
    known = np.full(24, -1)
    known[::5] = labels[::5]
    scores = diffuse(graph, known, CLASSES, alpha=0.9, iterations=200)
    sides = np.stack([(known == c) / max((known == c).sum(), 1) for c in range(CLASSES)], axis=1)
    expected = np.linalg.solve(np.eye(24) - 0.9 * graph.toarray(), sides)
    np.testing.assert_allclose(scores, np.maximum(expected, 0), rtol=1e-4, atol=1e-6)


def test_a_class_without_labels_has_no_influence_and_alpha_zero_spreads_no_label() -> None:
    graph = normalised_graph(*nearest_neighbors(blobs(2)[0], 2), 3.0)
    known = np.array([0, 0, 1, -1, -1, -1, -1, -1])
    scores = diffuse(graph, known, CLASSES, alpha=0.0, iterations=20)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[:, 0], [0.5, 0.5, 0, 0, 0, 0, 0, 0], atol=1e-7)
    assert scores[:, 2:].sum() == 0


def test_certainty_is_one_minus_relative_entropy_over_the_largest() -> None:
    scores = np.array([[0.2, 0.0, 0.0, 0.0], [0.3, 0.3, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(certainty(scores), [1, 0.5, 0, 0], atol=1e-9)
    np.testing.assert_allclose(certainty(scores[1:]), [1, 0, 0], atol=1e-9)
    assert np.isfinite(certainty(np.zeros((3, 4)))).all()


def method_of(labeled: int, unlabeled: int, **knobs: object) -> LabelPropagation:
    problem = type(PROBLEM)(**{**vars(PROBLEM), "num_labeled": labeled, "num_unlabeled": unlabeled})
    return LabelPropagation(settings_of("label_propagation", **knobs), problem)  # type: ignore[arg-type]


def test_labels_spread_within_clusters() -> None:
    features, labels = blobs(30)
    first = np.flatnonzero(np.arange(120) % 30 == 0)
    others = np.setdiff1d(np.arange(120), first)
    method = method_of(CLASSES, len(others), neighbors=5)
    method.propagate(features[np.concatenate([first, others])], torch.tensor(labels[first]))
    assert (method.pseudo_labels.numpy() == labels[others]).mean() > 0.95
    assert method.weights.min() >= 0
    assert method.weights.max() <= 1


def test_class_weights_are_inverse_to_what_the_classes_have() -> None:
    features = torch.eye(CLASSES)[[0, 1, 0, 0, 0, 1]]
    method = method_of(2, 4, neighbors=2)
    method.propagate(features, torch.tensor([0, 1]))
    assert method.pseudo_labels.tolist() == [0, 0, 0, 1]
    # (N / C) / n_c with N = 6, C = 4, n = 4 and 2; classes that nothing has are divided by 1
    assert method.class_weights.tolist() == [0.375, 0.75, 1.5, 1.5]


def test_the_loss_weighs_each_image_by_its_certainty_and_class() -> None:
    trial = Trial(settings_of("label_propagation", warmup=0.0, weight=2.0), student=student_of(model="mlp"))
    batch, method = batch_of(trial.method.views), trial.method
    assert isinstance(method, LabelPropagation)
    method.pseudo_labels.copy_(torch.arange(PROBLEM.num_unlabeled) % CLASSES)
    method.weights.copy_(torch.linspace(0, 1, PROBLEM.num_unlabeled))
    method.class_weights.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    with torch.no_grad():
        labeled, unlabeled = (
            torch.nn.functional.log_softmax(trial.student(images), 1).numpy()
            for images in (batch.labeled[0], batch.unlabeled[0])
        )
    rows, zeta, omega = batch.unlabeled_index.numpy(), method.class_weights.numpy(), method.weights.numpy()
    guesses = method.pseudo_labels.numpy()[rows]
    expected = -np.mean([zeta[y] * labeled[i, y] for i, y in enumerate(batch.labels.tolist())])
    expected += -2 * np.mean([omega[rows[i]] * zeta[y] * unlabeled[i, y] for i, y in enumerate(guesses)])
    assert method.loss(trial.student, batch, 0.5).total.item() == pytest.approx(expected, rel=1e-5)


def test_the_official_mean_over_the_whole_batch_is_half_of_the_loss() -> None:
    trial = Trial(settings_of("label_propagation", warmup=0.0), student=student_of(model="mlp"))
    batch, method = batch_of(trial.method.views, unlabeled=4), trial.method
    assert isinstance(method, LabelPropagation)
    method.weights.copy_(torch.linspace(0, 1, PROBLEM.num_unlabeled))
    method.class_weights.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    targets = torch.cat([batch.labels, method.pseudo_labels[batch.unlabeled_index]])
    weights = torch.cat([torch.ones(4), method.weights[batch.unlabeled_index]]) * method.class_weights[targets]
    with torch.no_grad():
        logits = trial.student(torch.cat([batch.labeled[0], batch.unlabeled[0]]))
    official = (weights * torch.nn.functional.cross_entropy(logits, targets, reduction="none")).sum() / len(targets)
    assert official.item() == pytest.approx(method.loss(trial.student, batch, 0.5).total.item() / 2, rel=1e-5)


@pytest.mark.parametrize(("refreshes", "every"), [(None, 2), (1, 3)])  # 16 images, 8 a step; the rest of the run
def test_the_first_graph_is_built_where_the_warm_up_ends(refreshes: int | None, every: int) -> None:
    trial = Trial(settings_of("label_propagation", warmup=0.5, neighbors=3, refreshes=refreshes))
    assert trial.method.refresh_every() == every
    for number, reached in ((0, False), (1, False), (2, False), (3, True)):
        assert ("unsupervised" in trial.step(number).logs) == reached
        assert bool((trial.method.weights > 0).any()) == reached, number


def test_an_epoch_longer_than_the_warm_up_does_not_make_the_untrained_network_the_teacher() -> None:
    trial = Trial(settings_of("label_propagation", warmup=0.2, neighbors=3), problem=problem_of(unlabeled_batch=2))
    assert trial.method.refresh_every() > PROBLEM.steps
    trial.step(0)
    assert not (trial.method.weights > 0).any()
    trial.step(1)
    assert (trial.method.weights > 0).any()


def test_features_are_those_of_the_network_without_noise_and_its_mode_is_given_back() -> None:
    method = method_of(PROBLEM.num_labeled, PROBLEM.num_unlabeled, warmup=0.0, neighbors=3)
    student = student_of(dropout=0.5).train()
    before = [value.clone() for value in student.buffers()]
    method.before_epoch(student, TinyPools())
    assert student.training
    assert all(torch.equal(*pair) for pair in zip(before, student.buffers(), strict=True))
    again = method_of(PROBLEM.num_labeled, PROBLEM.num_unlabeled, warmup=0.0, neighbors=3)
    again.before_epoch(student, TinyPools())
    assert torch.equal(method.weights, again.weights)


def test_isolated_images_do_not_divide_by_zero() -> None:
    graph = normalised_graph(np.zeros((3, 1)), np.array([[1], [0], [0]]), 3.0)
    assert isinstance(graph, sparse.csr_array)
    scores = diffuse(graph, np.array([0, -1, -1]), 2, 0.99, 20)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(certainty(scores), [1, 0, 0], atol=1e-9)


def test_views_are_one_weak_view_of_each() -> None:
    assert LabelPropagation.views == Views(labeled=("weak",), unlabeled=("weak",))
