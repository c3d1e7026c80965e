"""Trains the method `linear`: multinomial logistic regression on stored features.

With x the features less their mean, divided by one common deviation, targets y, and weights w that sum to 1, it
minimises

    - Σ w_i Σ_k y_ik log softmax(x_i W + b)_k + λ/2 ‖W‖²

by L-BFGS. λ is the penalty whose predictions, at their best temperature, have the least negative log-likelihood on
validation images; without validation, on labelled images that were left out (five folds). The temperature, mean and
deviation become part of the weights, so the result is an ordinary network: the backbone and a head.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.order import key_of
from selftrain.ssl_tasks.data.stored_features import BACKBONE, StoredFeatures
from selftrain.ssl_tasks.data.stream import PseudoPool
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.devices import prepare_backends
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.pseudo_labels.calibration import (
    LOG_RANGE_OF_TEACHERS,
    fit_temperature,
    negative_log_likelihood,
)
from selftrain.ssl_tasks.settings.methods import LinearSettings
from selftrain.ssl_tasks.settings.run_config import LearnerSettings
from selftrain.ssl_tasks.trained.model import WEIGHTS, load_card, load_weights, save_card, save_weights

log = logging.getLogger("selftrain")
PENALTIES = tuple(10.0**exponent for exponent in range(1, -5, -1))
USUAL_PENALTY = 0.1  # used if no image can be left out to choose a penalty
FOLDS = 5
MANY = 4_000  # images from which one fold is enough to choose the penalty
NEVER = -20.0  # logit of a class without images, relative to the mean of the others
ITERATIONS = 1_000
ROUGH, FINE = 1e-4, 1e-6  # least relative gain of a step: when searching the penalty, and for the result
CURVATURE = 0.1  # p (1 - p) of a typical class


@dataclass(frozen=True)
class Examples:
    """The training data of a regression."""

    features: Tensor  # [n, D]
    targets: Tensor  # [n, K], rows of probabilities
    weights: Tensor  # [n]

    def only(self, index: NDArray[np.int64]) -> "Examples":
        """Returns the examples at some positions."""
        chosen = torch.from_numpy(index)
        return Examples(self.features[chosen], self.targets[chosen], self.weights[chosen])

    def balanced(self) -> "Examples":
        """Returns the examples with weights that make all classes that occur count equally."""
        mass = (self.targets * self.weights[:, None]).sum(dim=0)
        share = torch.where(mass > 0, 1 / mass.clamp_min(torch.finfo(mass.dtype).tiny), 0.0)
        return replace(self, weights=self.weights * (self.targets * share).sum(dim=1))


@dataclass(frozen=True)
class Head:
    """A linear head: logits = features @ weight + bias."""

    weight: Tensor  # [D, K]
    bias: Tensor  # [K]

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


def fit(examples: Examples, penalty: float, start: Head | None = None, tolerance: float = FINE) -> Head:
    """Returns the head of least loss, searched from `start`. Classes without examples get a logit that never wins.

    The search uses units in which every feature has about the same curvature. With uncorrelated features, such as those
    of `principal`, it needs tens of steps instead of hundreds.
    """
    present = (examples.targets * examples.weights[:, None]).sum(dim=0) > 0
    features, width, classes = examples.features, examples.features.shape[1], int(present.sum())
    targets = examples.targets[:, present]
    weights = (examples.weights / examples.weights.sum())[:, None]
    mass = targets.sum(dim=1, keepdim=True)
    unit = (CURVATURE * (weights * features.square()).sum(dim=0) + penalty).rsqrt()[:, None]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        both = torch.from_numpy(flat.reshape(width + 1, classes)).to(features.dtype)
        weight, bias = both[:-1] * unit, both[-1]
        log_probs = torch.log_softmax(F.linear(features, weight.T.contiguous(), bias), dim=1)
        value = -(weights * targets * log_probs).sum() + penalty / 2 * weight.square().sum()
        error = weights * (mass * log_probs.exp() - targets)
        across = (error.T @ features).T  # twelve times as fast on a CPU as features.T @ error
        slope = torch.cat([(across + penalty * weight) * unit, error.sum(dim=0, keepdim=True)])
        return float(value), slope.double().numpy().ravel()

    first = torch.zeros(width + 1, classes)
    if start is not None:
        first = torch.cat([start.weight[:, present] / unit, start.bias[None, present]])
    options = {"maxiter": ITERATIONS, "gtol": tolerance, "ftol": tolerance}
    found = minimize(loss, first.double().numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
    both = torch.from_numpy(found.x.reshape(width + 1, classes)).to(features.dtype)
    weight, bias = torch.zeros(width, len(present)), torch.full((len(present),), float(both[-1].mean()) + NEVER)
    weight, bias = weight.to(both), bias.to(both)
    weight[:, present], bias[present] = both[:-1] * unit, both[-1]
    return Head(weight, bias)


def principal(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the features [n, r] in the basis of their principal axes, and the matrix [D, r] that maps back.

    The penalty keeps the weights within the span of the images, so few images need few dimensions without any loss.
    """
    few = len(features) < features.shape[1]
    squares, vectors = torch.linalg.eigh(features @ features.T if few else features.T @ features)
    kept = squares > squares.max() * 1e-6  # precision of float32
    squares, vectors = squares[kept], vectors[:, kept]
    back = features.T @ (vectors * squares.rsqrt()) if few else vectors
    return features @ back, back


@dataclass(frozen=True)
class Tried:
    """The result of a penalty on left-out images."""

    penalty: float
    temperature: float
    nll: float  # negative log-likelihood at the temperature
    accuracy: float

    @classmethod
    def of(cls, penalty: float, logits: Tensor, labels: NDArray[np.int64]) -> "Tried":
        """Computes the result from the logits of left-out images."""
        log_probs = torch.log_softmax(logits.double(), dim=1).numpy()
        temperature = fit_temperature(log_probs, labels, LOG_RANGE_OF_TEACHERS)
        tempered = torch.log_softmax(torch.from_numpy(log_probs) / temperature, dim=1).numpy()
        accuracy = float((log_probs.argmax(axis=1) == labels).mean())
        return cls(penalty, temperature, negative_log_likelihood(tempered, labels), accuracy)


class Search:
    """Fits one set of examples with several penalties, in the basis of their principal axes."""

    def __init__(self, examples: Examples) -> None:
        reduced, self.back = principal(examples.features)
        self.inside = replace(examples, features=reduced)

    def path(self, penalties: tuple[float, ...]) -> Iterator[Head]:
        """Yields a rough head for each penalty, the largest first; each search starts at the previous head."""
        head = None
        for penalty in penalties:
            head = fit(self.inside, penalty, head, ROUGH)
            yield head

    def outside(self, head: Head) -> Head:
        """Converts a head to the original features."""
        return Head(self.back @ head.weight, head.bias)

    def tried(
        self, penalties: tuple[float, ...], held: Tensor, labels: NDArray[np.int64]
    ) -> tuple[list[Tried], list[Head]]:
        """Tries penalties, the largest first, until one is worse than the previous one; returns results and heads."""
        found: list[Tried] = []
        heads: list[Head] = []
        for penalty, head in zip(penalties, self.path(penalties), strict=True):
            found.append(Tried.of(penalty, self.outside(head)(held), labels))
            heads.append(head)
            if len(found) > 1 and found[-1].nll > found[-2].nll:
                break
        return found, heads


def folds_of(sample_ids: list[str], labels: NDArray[np.int64], folds: int = FOLDS) -> NDArray[np.int64]:
    """Returns [n]: the fold that leaves an image out. A keyed order of ids spreads every class over all folds."""
    keys = np.array([key_of("fold", sample) for sample in sample_ids], np.uint64)
    order = np.lexsort((keys, labels))
    numbers = np.empty(len(labels), np.int64)
    numbers[order] = np.arange(len(labels)) % folds
    return numbers


def left_out_logits(
    examples: Examples, fold: NDArray[np.int64], penalties: tuple[float, ...], folds: NDArray[np.int64] | None = None
) -> list[Tensor]:
    """Returns, per penalty, logits [n, K] of the first n images by heads that did not learn from them.

    Further images are used in every fold. Rows of folds that are not requested stay empty.
    """
    logits = [torch.full((len(fold), examples.targets.shape[1]), torch.nan) for _ in penalties]
    always = np.arange(len(fold), len(examples.features))
    for number in np.unique(fold) if folds is None else folds:
        out = np.flatnonzero(fold == number)
        search = Search(examples.only(np.concatenate([np.flatnonzero(fold != number), always])))
        for row, head in zip(logits, search.path(penalties), strict=True):
            row[out] = search.outside(head)(examples.features[out]).float()
    return logits


def cross_validated(
    examples: Examples, penalties: tuple[float, ...], sample_ids: list[str], labels: NDArray[np.int64]
) -> list[Tried]:
    """Returns the result of each penalty on left-out labelled images; nothing if a class has only one image."""
    fewest = int(np.bincount(labels)[np.unique(labels)].min())
    if fewest < 2:
        return []
    fold = folds_of(sample_ids, labels, min(FOLDS, fewest))
    asked = np.unique(fold)[:1] if len(labels) > MANY else np.unique(fold)
    seen = np.isin(fold, asked)
    logits = left_out_logits(examples, fold, penalties, asked)
    return [Tried.of(penalty, one[seen], labels[seen]) for penalty, one in zip(penalties, logits, strict=True)]


@dataclass(frozen=True)
class Regression:
    """A fitted head in the features' own units, and the result by which its penalty was chosen."""

    head: Head
    chosen: Tried | None  # None if no image could be left out
    chosen_on: str  # validation, cross-validation or nothing
    tried: list[Tried]


def regress(
    settings: LinearSettings,
    examples: Examples,
    held: Tensor,
    held_labels: NDArray[np.int64],
    sample_ids: list[str],
    labels: NDArray[np.int64],
) -> Regression:
    """Chooses the penalty and fits the head. The first examples are the labelled images; `held` is validation."""
    mean, scale = examples.features.mean(dim=0), examples.features.std().clamp_min(1e-12)
    scaled = replace(examples, features=(examples.features - mean) / scale)
    if settings.class_balanced:
        scaled = scaled.balanced()
    penalties = PENALTIES if settings.penalty == "choose" else (settings.penalty,)
    search, heads = Search(scaled), list[Head]()
    if len(held_labels):
        chosen_on = "validation"
        tried, heads = search.tried(penalties, (held - mean) / scale, held_labels)
    else:
        tried = cross_validated(scaled, penalties, sample_ids, labels)
        chosen_on = "cross-validation" if tried else "nothing"
    chosen = min(tried, key=lambda one: one.nll) if tried else None
    penalty = chosen.penalty if chosen else settings.penalty if settings.penalty != "choose" else USUAL_PENALTY
    start = heads[tried.index(chosen)] if chosen and heads else None
    head = search.outside(fit(search.inside, penalty, start))
    temperature = chosen.temperature if chosen else 1.0
    weight, bias = head.weight / temperature / scale, head.bias / temperature
    return Regression(Head(weight, bias - mean @ weight), chosen, chosen_on, tried)


def train_linear(context: StageContext) -> StageResult:
    """Runs the body of the stage `train` for `linear`: data set, features and optionally a selection → a model."""
    learner = context.section
    assert isinstance(learner, LearnerSettings)
    settings = learner.method
    assert isinstance(settings, LinearSettings)
    prepare_backends("fp32", context.runtime.threads)
    dataset = Dataset.open(context.inputs["dataset"], context.cache, context.runtime)
    stored = StoredFeatures.open(context.inputs["features"], context.cache)
    labeled, validation = dataset.pool("labeled"), dataset.pool("validation")
    warnings = refuse_or_warn(labeled.labels, dataset.classes)
    rows, targets = (
        [stored.rows(labeled.column("sample_id"))],
        [np.eye(dataset.num_classes, dtype=np.float32)[labeled.labels]],
    )
    weights = [np.ones(len(labeled), np.float32)]
    if "selection" in context.inputs:
        pseudo = PseudoPool.open(context.inputs["selection"], context.scratch)
        rows.append(stored.rows(dataset.pool("unlabeled").column("sample_id", pseudo.positions)))
        targets.append(pseudo.targets(np.arange(len(pseudo)), dataset.num_classes))
        weights.append((settings.weight * pseudo.copies).astype(np.float32))
    examples = Examples(
        vectors(stored, np.concatenate(rows)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate(weights)),
    )
    known = np.flatnonzero(validation.labels >= 0)
    held = vectors(stored, stored.rows(validation.column("sample_id", known)))
    found = regress(settings, examples, held, validation.labels[known], labeled.sample_ids(), labeled.labels)
    metrics = {
        "validation_accuracy": float((found.head(held).argmax(1).numpy() == validation.labels[known]).mean())
        if len(known)
        else None,
        "penalty": found.chosen.penalty if found.chosen else None,
        "temperature": found.chosen.temperature if found.chosen else 1.0,
        "chosen_on": found.chosen_on,
        "images": len(examples.features),
        "backbone": stored.backbone,
        "warnings": warnings,
    }
    write_linear(context, stored, found.head, {**metrics, "tried": [vars(one) for one in found.tried]}, dataset.classes)
    return StageResult(summary=metrics)


def vectors(stored: StoredFeatures, rows: NDArray[np.int64]) -> Tensor:
    """Returns some rows as float32 [n, D]."""
    return torch.from_numpy(stored.matrix[rows].astype(np.float32))


def refuse_or_warn(labels: NDArray[np.int64], classes: tuple[str, ...]) -> list[str]:
    """Raises ConfigError if fewer than two classes have images; returns warnings about classes without images."""
    present = np.unique(labels)
    if len(present) < 2:
        only = f"all {len(labels)} of class '{classes[present[0]]}'" if len(present) else "none"
        raise ConfigError(
            f"method linear found {only} among the labelled images; expected images of two classes or more. "
            "Label images of another class, or raise data.split.labels_per_class"
        )
    missing = [name for number, name in enumerate(classes) if number not in present]
    if missing:
        log.warning("no labelled image of %s: the model will not predict it", ", ".join(missing))
    return [f"no labelled image of class {name}: it is never predicted" for name in missing]


def write_linear(
    context: StageContext, stored: StoredFeatures, head: Head, metrics: dict[str, Any], classes: tuple[str, ...]
) -> None:
    """Writes the artifact's files: the whole network and its card, and the metrics of the fit."""
    backbone = stored.artifact.file(BACKBONE)
    state = load_weights(backbone / WEIGHTS)
    state |= {"head.weight": head.weight.T.float(), "head.bias": head.bias.float()}
    save_weights(context.output / WEIGHTS, state)
    save_card(context.output, load_card(backbone).model_copy(update={"classes": classes}))
    (context.output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
