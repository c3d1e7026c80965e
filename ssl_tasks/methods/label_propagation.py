"""Implements Label Propagation for Deep Semi-supervised Learning (Iscen et al. 2019, arXiv 1904.04717).

Every epoch, the features of all images become a graph: an edge to each of the k nearest neighbours, weighted by
[cosine]₊^γ, W = A + Aᵀ with an empty diagonal, normalised to S = D^-½ W D^-½. The labels diffuse over it:
(I - αS) z_c = y_c for each class, by conjugate gradient, where y_c is 1/n_c on the class's labelled images (so that a
class with more labels has no more influence; one without labels has none). An unlabelled image's pseudo-label is
argmax_c z, its weight ω = 1 - H(z / Σz) / log C, divided by the largest. With ζ_c = (N / C) / n_c against imbalance,
loss = mean ζ_y CE(labelled) + weight · mean ω ζ_ŷ CE(unlabelled).

Deviations: the official code takes one mean over a batch of which half is labelled, which is half of this loss at
weight 1 (half the learning rate and twice the weight decay make SGD's steps equal). Its pre-training on labels is a
separate training: 180 epochs of the labelled set with their own schedule. Here it is `warmup`, the first share of one
schedule; epochs are counted from its end. The official search removes the first neighbour found as the image itself;
here the image is removed by its number, which differs if two images are equal. ζ of a class without any image is 0/0
there and harmless here.
"""

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import cg
from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    Pools,
    Problem,
    adjusted,
    combine,
    forward_together,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import exact_products, first_step, pseudo_label_logs, weighted_cross_entropy
from selftrain.ssl_tasks.settings.methods import LabelPropagationSettings

CHUNK = 2048  # rows of the similarity matrix at a time: 400 MB of float32 for 50,000 images


def nearest_neighbors(features: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact cosine similarities [n, k] and numbers [n, k] of every row's nearest other rows."""
    normal = F.normalize(features.float(), dim=1)
    k = min(k, len(normal) - 1)
    found = []
    with exact_products(normal.device):  # bf16 cannot tell close neighbours apart
        for start in range(0, len(normal), CHUNK):
            rows = normal[start : start + CHUNK]
            similarity = rows @ normal.T
            similarity[:, start : start + len(rows)].fill_diagonal_(-torch.inf)
            found.append(similarity.topk(k, dim=1))
    values, index = zip(*found, strict=True)
    return torch.cat(values).cpu().numpy(), torch.cat(index).cpu().numpy()


def normalised_graph(similarity: np.ndarray, index: np.ndarray, power: float) -> sparse.csr_array:
    """Returns D^-½ (A + Aᵀ) D^-½ with A_ij = [sim_ij]₊^power; an image without edges has an empty row."""
    n, k = index.shape
    edges = np.maximum(similarity, 0).astype(np.float64) ** power
    directed = sparse.csr_array((edges.ravel(), (np.repeat(np.arange(n), k), index.ravel())), shape=(n, n))
    both = directed + directed.T
    degree = np.asarray(both.sum(axis=1)).ravel()
    scale = sparse.dia_array((1 / np.sqrt(np.where(degree > 0, degree, 1))[None], [0]), shape=(n, n))
    return sparse.csr_array(scale @ both @ scale)


def diffuse(graph: sparse.csr_array, labels: np.ndarray, num_classes: int, alpha: float, iterations: int) -> np.ndarray:
    """Returns z [n, C] of (I - αS) z_c = y_c, without negative rounding errors; unknown labels are -1."""
    system = sparse.identity(graph.shape[0], format="csr") - alpha * graph
    scores = np.zeros((graph.shape[0], num_classes))
    for number in range(num_classes):
        known = labels == number
        if known.any():
            scores[:, number] = cg(system, known / known.sum(), rtol=1e-6, maxiter=iterations)[0]
    return np.maximum(scores, 0)


def certainty(scores: np.ndarray) -> np.ndarray:
    """Returns ω [n]: 1 - entropy of the scores' shares ÷ log C, over the largest; 0 if no label arrived."""
    total = scores.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, scores / np.where(total > 0, total, 1), 1 / scores.shape[1])
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=1)
    weights = np.maximum(1 - entropy / np.log(scores.shape[1]), 0)
    return weights / max(weights.max(), 1e-12)


class LabelPropagation(Method):
    """The method; it remembers each unlabelled image's pseudo-label and weight from the graph of the last refresh."""

    views = Views(labeled=("weak",), unlabeled=("weak",))
    pseudo_labels: Tensor
    weights: Tensor
    class_weights: Tensor

    def __init__(self, settings: LabelPropagationSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.register_buffer("pseudo_labels", torch.zeros(problem.num_unlabeled, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(problem.num_unlabeled))
        self.register_buffer("class_weights", torch.ones(problem.num_classes))

    def refresh_every(self) -> int:
        if self.settings.refreshes is None:
            return -(-self.problem.num_unlabeled // self.problem.unlabeled_batch)
        return max(1, round(self.problem.steps * (1 - self.settings.warmup) / self.settings.refreshes))

    def refresh_from(self) -> int:
        return first_step(self.settings.warmup, self.problem.steps)

    @torch.no_grad()
    def before_epoch(self, student: Classifier, pools: Pools) -> None:
        training = student.training
        student.eval()
        known, labels = zip(*((student.features(x), y) for _, x, y in pools.labeled()), strict=True)
        unknown = [student.features(images) for _, images in pools.unlabeled()]
        student.train(training)
        self.propagate(torch.cat([*known, *unknown]), torch.cat(labels))

    def propagate(self, features: Tensor, labels: Tensor) -> None:
        """Computes pseudo-labels and weights from the features of the labelled images, then of the unlabelled ones."""
        nodes = np.full(len(features), -1)
        nodes[: len(labels)] = labels.cpu().numpy()
        graph = normalised_graph(*nearest_neighbors(features, self.settings.neighbors), self.settings.power)
        scores = diffuse(graph, nodes, self.problem.num_classes, self.settings.alpha, self.settings.iterations)
        found = np.where(nodes >= 0, nodes, scores.argmax(axis=1))
        weights = certainty(scores)
        reached = scores.sum(axis=1) > 0
        self.pseudo_labels.copy_(torch.from_numpy(found[len(labels) :]))
        kept = weights if self.settings.entropy_weights else reached.astype(np.float64)
        self.weights.copy_(torch.from_numpy(kept[len(labels) :]))
        if self.settings.class_weights:
            counts = np.bincount(found, minlength=self.problem.num_classes)
            self.class_weights.copy_(torch.from_numpy(len(nodes) / len(counts) / np.maximum(counts, 1)))

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        if progress < self.settings.warmup or self.settings.weight == 0:
            return supervised_alone(student, batch)
        labeled, unlabeled = forward_together(student, batch.labeled[0], batch.unlabeled[0])
        guesses, weights = self.pseudo_labels[batch.unlabeled_index], self.weights[batch.unlabeled_index]
        true_weights = self.class_weights[batch.labels]
        if batch.label_weights is not None:
            true_weights = true_weights * batch.label_weights
        supervised = weighted_cross_entropy(adjusted(labeled, batch), batch.labels, true_weights)
        unsupervised = weighted_cross_entropy(unlabeled, guesses, weights * self.class_weights[guesses])
        logs = pseudo_label_logs(guesses, weights, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, self.settings.weight, (labeled, unlabeled), logs)
