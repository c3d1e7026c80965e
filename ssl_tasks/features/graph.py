"""Makes pseudo-labels from neighbours among stored features: the sources `propagate` and `knn` of the stage `predict`.

`propagate` is label propagation (Iscen et al. 2019, arXiv 1904.04717) on a fixed graph: an edge to each of the k
nearest neighbours, weighted by [cosine]₊^power, and (I - αS) z_c = y_c for each class by conjugate gradient. The nodes
are the labelled, unlabelled and validation images; the labels of validation are not used. With `balance`, rows and
columns of z are scaled in turn until each class has its share of the labelled images (Sinkhorn). With `knn`, the
nearest labelled images vote, each with weight [cosine]₊^power.

Shares of scores are not probabilities. A temperature turns them into probabilities. It is fitted on one half of the
validation images; without validation, on labelled images whose labels were left out (five folds).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from selftrain.ssl_tasks.data.dataset import Dataset, Pool
from selftrain.ssl_tasks.data.stored_features import StoredFeatures
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.devices import prepare_backends
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.features.linear import folds_of
from selftrain.ssl_tasks.methods.label_propagation import diffuse, nearest_neighbors, normalised_graph
from selftrain.ssl_tasks.pseudo_labels.calibration import LOG_RANGE_OF_TEACHERS, fit_temperature
from selftrain.ssl_tasks.pseudo_labels.engine import saying_what_is_full
from selftrain.ssl_tasks.pseudo_labels.labeller import Opinion
from selftrain.ssl_tasks.pseudo_labels.predict import Predicting
from selftrain.ssl_tasks.settings.pseudo_labels import GraphSettings, PredictSettings

log = logging.getLogger("selftrain")
EXACT = 20_000  # nodes up to which all pairs are compared, which is then about as fast as the index
CHUNK = 8_192  # rows at a time
LINKS, EFFORT = 16, 64  # of the index; recall 0.996 for 30 neighbours among 80,000 images
ITERATIONS, SINKHORN = 20, 10
SMOOTHING = 1e-3  # score of a class without a voter


def predict_by_neighbors(context: StageContext) -> StageResult:
    """Runs the body of the stage `predict` for these sources: data set and features → the table of predictions."""
    settings = context.section
    assert isinstance(settings, PredictSettings)
    prepare_backends("fp32", context.runtime.threads)
    dataset = Dataset.open(context.inputs["dataset"], context.cache, context.runtime)
    stored = StoredFeatures.open(context.inputs["features"], context.cache)
    with saying_what_is_full(context.output):
        nodes = Nodes.of(dataset, stored)
        scores, temperature = scored(nodes, settings, context.scratch, dataset.pool("validation"))
        settings = settings.model_copy(update={"temperature": temperature})
        return ByNeighbors(context, settings, dataset, (), [context.inputs["features"].digest], (), nodes, scores).run()


@dataclass(frozen=True)
class Nodes:
    """The images of a graph; an image in several splits occurs once."""

    stored: StoredFeatures
    rows: NDArray[np.int64]  # sorted row numbers of the stored features
    labels: NDArray[np.int64]  # -1 if training knows no label
    sample_ids: list[str]  # ids of the labelled images, in the order of the rows
    num_classes: int

    @classmethod
    def of(cls, dataset: Dataset, stored: StoredFeatures) -> "Nodes":
        """Collects the labelled, unlabelled and validation images."""
        labeled = dataset.pool("labeled")
        if not len(labeled):
            raise ConfigError("source propagate or knn needs labelled images, and there are none. Label some images")
        known = stored.rows(labeled.column("sample_id"))
        others = [stored.rows(dataset.pool(name).column("sample_id")) for name in ("unlabeled", "validation")]
        rows = np.unique(np.concatenate([known, *others]))
        labels = np.full(len(rows), -1)
        labels[np.searchsorted(rows, known)] = labeled.labels
        ids = np.array(labeled.sample_ids(), object)[np.argsort(known)]
        return cls(stored, rows, labels, ids.tolist(), dataset.num_classes)

    def vectors(self, index: NDArray[np.int64] | slice) -> torch.Tensor:
        """Returns the vectors of some nodes as float32, of length 1."""
        return F.normalize(torch.from_numpy(self.stored.matrix[self.rows[index]]).float(), dim=1)

    def at(self, sample_ids: Any) -> NDArray[np.int64]:
        """Returns the positions of these images among the nodes."""
        return np.searchsorted(self.rows, self.stored.rows(sample_ids))


def scored(
    nodes: Nodes, settings: PredictSettings, scratch: Path, validation: Pool
) -> tuple[NDArray[np.float32], float | str]:
    """Returns the shares [n, K] of each node, and the temperature, or "fit" if validation can fit it."""
    score = Voting(nodes, settings.graph) if settings.source == "knn" else Diffusion(nodes, settings.graph, scratch)
    scores = score(nodes.labels)
    if (validation.labels >= 0).any():
        return scores, "fit"
    known = np.flatnonzero(nodes.labels >= 0)
    labels = nodes.labels[known]
    fewest = np.bincount(labels)[np.unique(labels)].min()
    if fewest < 2:
        log.warning("a class has a single labelled image and there is no validation: confidence is not calibrated")
        return scores, 1.0
    fold = folds_of(nodes.sample_ids, labels, min(5, int(fewest)))
    left_out = np.empty((len(known), nodes.num_classes))
    for number in np.unique(fold):
        out = known[fold == number]
        fewer = nodes.labels.copy()
        fewer[out] = -1
        left_out[fold == number] = score(fewer)[out]
    return scores, fit_temperature(np.log(left_out), labels, LOG_RANGE_OF_TEACHERS)


class Diffusion:
    """Propagates labels over one graph."""

    def __init__(self, nodes: Nodes, settings: GraphSettings, scratch: Path) -> None:
        self.settings, self.num_classes = settings, nodes.num_classes
        similarity, index = kept_neighbors(nodes, settings.neighbors, scratch / "neighbors.npz")
        self.graph = normalised_graph(similarity, index, settings.power)

    def __call__(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the shares [n, K] of the scores; uniform if no label reaches a node."""
        settings = self.settings
        scores = diffuse(self.graph, labels, self.num_classes, settings.alpha, ITERATIONS)
        prior = np.bincount(labels[labels >= 0], minlength=self.num_classes) / (labels >= 0).sum()
        scores = shares_of(scores)
        if settings.balance:
            for _ in range(SINKHORN):
                scores = shares_of(scores * (prior / np.maximum(scores.mean(axis=0), np.finfo(float).tiny)))
        return np.maximum(scores, np.finfo(np.float32).tiny).astype(np.float32)


class Voting:
    """Lets the nearest labelled images vote. An image never votes for itself."""

    def __init__(self, nodes: Nodes, settings: GraphSettings) -> None:
        self.nodes, self.settings = nodes, settings

    def __call__(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the shares [n, K] of the votes."""
        voters = np.flatnonzero(labels >= 0)
        ballots = torch.eye(self.nodes.num_classes)[torch.from_numpy(labels[voters])]
        theirs, found = self.nodes.vectors(voters), []
        for start in range(0, len(labels), CHUNK):
            own = np.arange(start, min(start + CHUNK, len(labels)))
            similarity = self.nodes.vectors(own) @ theirs.T
            similarity[torch.from_numpy(own[:, None] == voters)] = 0
            best, who = similarity.clamp_min(0).topk(min(self.settings.neighbors, len(voters)), dim=1)
            found.append((best.pow(self.settings.power)[:, :, None] * ballots[who]).sum(dim=1).numpy())
        votes = shares_of(np.concatenate(found))
        return ((votes + SMOOTHING) / (1 + SMOOTHING * self.nodes.num_classes)).astype(np.float32)


def shares_of(scores: NDArray[Any]) -> NDArray[Any]:
    """Scales rows so that they sum to 1; a row of zeros becomes uniform."""
    total = scores.sum(axis=1, keepdims=True)
    return np.where(total > 0, scores / np.where(total > 0, total, 1), 1 / scores.shape[1])


def kept_neighbors(nodes: Nodes, count: int, path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the neighbours, and stores them in the scratch folder for an attempt after a kill."""
    if path.exists():
        with np.load(path) as kept:
            return kept["similarity"], kept["index"]
    similarity, index = neighbors_of(nodes, count)
    temporary = path.with_name(f".{path.name}")
    np.savez(temporary, similarity=similarity, index=index)
    temporary.replace(path)
    return similarity, index


def neighbors_of(nodes: Nodes, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns cosines [n, k] and positions [n, k] of the nearest other nodes: exact for few nodes, else approximate."""
    size = len(nodes.rows)
    count = min(count, size - 1)
    if size <= EXACT:
        return nearest_neighbors(nodes.vectors(slice(None)), count)
    from usearch.index import Index

    width, effort = nodes.stored.matrix.shape[1], max(EFFORT, 2 * count)
    index = Index(
        ndim=width, metric="cos", dtype="f16", connectivity=LINKS, expansion_add=effort, expansion_search=effort
    )
    for start in range(0, size, CHUNK):  # in one thread: with several, the graph would depend on their speeds
        own = np.arange(start, min(start + CHUNK, size))
        index.add(own, nodes.stored.matrix[nodes.rows[own]], threads=1)
    similarity, numbers = np.zeros((size, count), np.float32), np.zeros((size, count), np.int64)
    for start in range(0, size, CHUNK):
        own = np.arange(start, min(start + CHUNK, size))
        found = index.search(nodes.stored.matrix[nodes.rows[own]], count + 1, threads=torch.get_num_threads())
        keys, near = found.keys.astype(np.int64), 1 - found.distances
        # Removes the image itself; if it was not found, the farthest neighbour.
        last = np.where((keys == own[:, None]).any(axis=1), (keys == own[:, None]).argmax(axis=1), count)
        others = np.arange(count + 1) != last[:, None]
        similarity[own], numbers[own] = near[others].reshape(-1, count), keys[others].reshape(-1, count)
    return similarity, numbers


@dataclass(frozen=True)
class ByNeighbors(Predicting):
    """Writes a table of predictions from the scores of nodes."""

    nodes: Nodes
    scores: NDArray[np.float32]

    @property
    def computed_by(self) -> dict[str, str]:
        return {"source": self.settings.source}

    @property
    def by_ray(self) -> bool:
        return False

    def question(self, temperature: float) -> dict[str, Any]:
        """Returns everything that a shard's contents depend on: every label, and every image of the graph."""
        parts = self.context.inputs["dataset"].parts
        asked = {"source": self.settings.source, "graph": self.settings.graph.identity(), "labeled": parts["labeled"]}
        return {**super().question(temperature), **asked, "unlabeled": parts["unlabeled"]}

    def nothing(self) -> Opinion:
        width = self.nodes.stored.matrix.shape[1]
        return Opinion(torch.empty(1, 0, self.nodes.num_classes), torch.empty(0, width))

    def opinions(self, pool: Pool, index: NDArray[np.int64], ids: Sequence[str]) -> Iterator[Opinion]:
        """Yields the predictions of the neighbours for some images, batch by batch."""
        at = self.nodes.at(pool.column("sample_id", index))
        for start in range(0, len(at), self.settings.batch_size):
            some = at[start : start + self.settings.batch_size]
            yield Opinion(torch.from_numpy(self.scores[some]).log()[None], self.nodes.vectors(some))
