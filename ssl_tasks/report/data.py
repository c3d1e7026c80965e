"""Defines the contents of the report as typed values, without markup, and without images except sprites."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """An accuracy with its 95 % interval."""

    accuracy: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Stage:
    """One stage of the run: a line of the table of times and a node of the lineage graph."""

    name: str
    stage: str
    round: int
    state: str
    wall_seconds: float  # in this run; close to 0 for a reused stage
    cost_seconds: float | None  # of the computation, in whichever run it happened
    key: str
    digest: str
    reason: str
    inputs: tuple[tuple[str, str], ...]  # role, name of the stage it came from
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    link: str | None  # to its MLflow run


@dataclass(frozen=True)
class ClassBalance:
    """The numbers of one class, from labelled images to the images in a student's training."""

    labeled: int
    candidates: int
    threshold: float | None  # None: no confidence was high enough
    kept: int
    copies: int
    overrides: int
    mean_confidence: float | None
    estimated_precision: float | None  # on validation images
    precision_bound: float | None
    right: int | None  # correct ones among the accepted, where the ground truth is known
    known: int | None


@dataclass(frozen=True)
class Histogram:
    """Confidences of a round's predictions in equal bins, accepted and rejected, by class and in total."""

    bins: int
    kept: tuple[int, ...]
    left: tuple[int, ...]
    by_class: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]  # empty if there are too many classes


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix as non-zero cells (truth, predicted, count); of too many, the largest wrong ones."""

    cells: tuple[tuple[int, int, int], ...]
    right: int
    total: int
    complete: bool


@dataclass(frozen=True)
class Reliability:
    """Bins (lower, upper, count, confidence, accuracy) on validation, without and with the fitted temperature."""

    bins: tuple[Mapping[str, Any], ...]
    tempered: tuple[Mapping[str, Any], ...]
    ece: float
    tempered_ece: float | None
    temperature: float | None


@dataclass(frozen=True)
class Flips:
    """Images whose predicted class changed since the previous round: their number, and the most frequent changes."""

    flipped: int
    compared: int
    kept: int
    pairs: tuple[tuple[int, int, int, int], ...]  # from, to, images, accepted images


@dataclass(frozen=True)
class RoundPage:
    """Everything about one round; round 0 is the teacher and has only a model."""

    round: int
    model: str
    architecture: str
    method: str
    labeled: int
    candidates: int | None = None
    kept: int | None = None
    copies: int | None = None
    overrides: int = 0
    rejected: int = 0
    unmatched_corrections: int = 0  # corrections that no longer match the data
    unreadable: int = 0
    right: int | None = None  # correct ones among the accepted, where the ground truth is known
    known: int | None = None
    validation: Score | None = None
    test: Score | None = None
    medians: Mapping[str, float] | None = (
        None  # medians of the last evaluations in training by split, and `of` how many
    )
    balance: tuple[ClassBalance, ...] = ()
    histogram: Histogram | None = None
    reliability: Reliability | None = None
    confusion: Confusion | None = None
    label_confusion: Confusion | None = None
    flips: Flips | None = None
    gate: Mapping[str, Any] | None = None
    curve: tuple[tuple[int, float], ...] = ()  # step, validation accuracy
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opinion:
    """The prediction and selection of a sample in one round."""

    round: int
    label: int
    given: int | None  # the label that students see, after a correction if there is one; None if rejected
    source: str | None
    copies: int
    rank: int | None
    confidence: float
    margin: float
    agreement: float | None
    before: int | None  # the label of the previous round
    near: bool  # near the threshold
    rejected: bool  # by a correction
    score: float  # how useful a review is
    why: str
    top: tuple[tuple[int, float], ...]  # class, probability


@dataclass(frozen=True)
class Sample:
    """A picture of the gallery with its prediction in each round."""

    id: str
    uri: str
    truth: int | None
    picture: int | None  # its tile in the sprites
    opinions: tuple[Opinion, ...]


@dataclass(frozen=True)
class Pictures:
    """Thumbnails in sprites of `columns` × `columns` tiles, each a data URI."""

    tile: int
    columns: int
    sprites: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """The pictures of the gallery; `of` is the number of predictions in the last round."""

    samples: tuple[Sample, ...]
    pictures: Pictures
    of: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """All contents of a report."""

    run: Mapping[str, Any]
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    stages: tuple[Stage, ...]
    rounds: tuple[RoundPage, ...]
    best_round: int | None
    gallery: Gallery
