"""Chooses confidence thresholds for `target_precision`, on held-out labelled images, with a statistical guarantee.

The promise: with probability ≥ `confidence` over the draw of the held-out images, at least the share `target` of the
accepted labels is correct. It holds for every class that is tested by itself, so also for any mixture of these, and
for all classes with too few held-out images together. It is about the images that the held-out ones are a random
sample of, before balancing repeats some of them.

How: a ladder of thresholds from strict to lenient is fixed before any held-out label is read (by the share of the
*unlabelled* images that each accepts). Each rung's hypothesis "precision < target" is tested with the exact binomial
(Clopper-Pearson) bound at the full allowed error, one after the other, until one cannot be rejected. Testing in a fixed
sequence needs no correction for the number of rungs. Classes share the allowed error equally (Bonferroni).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Floats = NDArray[np.float64]
Scope = Literal["class", "pooled", "none"]

RUNGS = 40
FIRST_RUNG = 2.0  # the strictest rung accepts this many times the images that are needed if all are correct
ALONE = 10.0  # a class is tested by itself if it has this many times the images that are needed if all are correct


@dataclass(frozen=True)
class HeldOut:
    """The teacher's predictions of held-out images: class, confidence, and whether it is correct."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]

    def of(self, classes: NDArray[np.int64]) -> "HeldOut":
        """Returns the images for which the teacher predicts one of these classes."""
        rows = np.isin(self.predicted, classes)
        return HeldOut(self.predicted[rows], self.confidence[rows], self.correct[rows])


@dataclass(frozen=True)
class Ladder:
    """The confidences of a class's unlabelled images, largest first, with the number of images at each."""

    confidence: NDArray[np.float32]
    count: NDArray[np.int64]

    @classmethod
    def merged(cls, ladders: Sequence["Ladder"]) -> "Ladder":
        """Returns the ladder of several classes together."""
        confidence = np.concatenate([ladder.confidence for ladder in ladders])
        order = np.argsort(-confidence, kind="stable")
        return cls(confidence[order], np.concatenate([ladder.count for ladder in ladders])[order])

    def rungs(self, held_out: int, needed: int) -> NDArray[np.float32]:
        """Returns thresholds, the strictest first, which should accept `FIRST_RUNG` × `needed` held-out images."""
        if not len(self.count) or not held_out:
            return np.empty(0, np.float32)
        kept = np.cumsum(self.count) / self.count.sum()
        shares = np.geomspace(min(1.0, FIRST_RUNG * needed / held_out), 1.0, RUNGS)
        rungs = self.confidence[np.searchsorted(kept, shares - 1e-12)]
        return np.unique(rungs)[::-1]


@dataclass(frozen=True)
class Promise:
    """The threshold of each class (inf if nothing can be promised), and whether it was tested alone or pooled."""

    thresholds: NDArray[np.float32]
    scope: tuple[Scope, ...]


def lower_bound(correct: int, total: int, error: float) -> float:
    """Returns the Clopper-Pearson bound: the share is at least this with probability 1 - error."""
    return float(beta.ppf(error, correct, total - correct + 1)) if correct else 0.0


def needed_images(target: float, error: float) -> int:
    """Returns the least number of images that, if all are correct, shows the target."""
    return int(np.ceil(np.log(error) / np.log(target) - 1e-9))


def most_lenient(held_out: HeldOut, rungs: NDArray[np.float32], target: float, error: float) -> float:
    """Returns the last rung before the first that is not shown to reach the target; inf if the strictest fails."""
    best = np.inf
    for rung in rungs:
        kept = held_out.confidence >= rung
        if lower_bound(int(held_out.correct[kept].sum()), int(kept.sum()), error) < target:
            break
        best = float(rung)
    return best


def judged_alone(counts: NDArray[np.int64], target: float, error: float) -> NDArray[np.bool_]:
    """Returns the largest set of classes with enough held-out images each if they share the allowed error."""
    order = np.argsort(-counts, kind="stable")
    alone = np.zeros(len(counts), bool)
    for number in range(len(counts), 0, -1):
        groups = number + (number < len(counts))
        if counts[order[number - 1]] >= ALONE * needed_images(target, error / groups):
            alone[order[:number]] = True
            break
    return alone


def promised_thresholds(held_out: HeldOut, ladders: Sequence[Ladder], target: float, confidence: float) -> Promise:
    """Returns thresholds per class; `held_out` and the ladders have already passed the other rules."""
    thresholds = np.full(len(ladders), np.inf, np.float32)
    scope: list[Scope] = ["none"] * len(ladders)
    alone = judged_alone(np.bincount(held_out.predicted, minlength=len(ladders)), target, 1 - confidence)
    groups = [np.array([label]) for label in np.flatnonzero(alone)]
    if not alone.all():
        groups.append(np.flatnonzero(~alone))
    error = (1 - confidence) / len(groups)
    for group in groups:
        rows = held_out.of(group)
        rungs = Ladder.merged([ladders[label] for label in group]).rungs(
            len(rows.confidence), needed_images(target, error)
        )
        thresholds[group] = most_lenient(rows, rungs, target, error)
        if np.isfinite(thresholds[group[0]]):
            for label in group:
                scope[label] = "class" if alone[label] else "pooled"
    return Promise(thresholds, tuple(scope))
