"""What the report shows, as typed values: no markup, no images but the sprites'."""

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
    wall_seconds: float  # in this run: next to nothing where the answer was there already
    cost_seconds: float | None  # of the computation, whichever run it was in
    key: str
    digest: str
    reason: str
    inputs: tuple[tuple[str, str], ...]  # role, name of the stage it came from
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    link: str | None  # to its MLflow run


@dataclass(frozen=True)
class ClassBalance:
    """One class, from the labelled images to what a student is shown."""

    labeled: int
    candidates: int
    threshold: float | None  # None: nothing was good enough
    kept: int
    copies: int
    overrides: int
    mean_confidence: float | None
    estimated_precision: float | None  # on held-out images
    precision_bound: float | None
    right: int | None  # of the kept ones, against hidden truth
    known: int | None


@dataclass(frozen=True)
class Histogram:
    """Confidences of a round's candidates in equal bins: those kept and those not, by class and together."""

    bins: int
    kept: tuple[int, ...]
    left: tuple[int, ...]
    by_class: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]  # empty where there are too many classes


@dataclass(frozen=True)
class Confusion:
    """Cells (truth, said, count) that are not 0, the largest wrong ones where there are too many."""

    cells: tuple[tuple[int, int, int], ...]
    right: int
    total: int
    complete: bool


@dataclass(frozen=True)
class Reliability:
    """Bins (lower, upper, count, confidence, accuracy) on validation, as the model is and with its temperature."""

    bins: tuple[Mapping[str, Any], ...]
    tempered: tuple[Mapping[str, Any], ...]
    ece: float
    tempered_ece: float | None
    temperature: float | None


@dataclass(frozen=True)
class Flips:
    """Labels that the round before gave otherwise: how many, of how many, and the most frequent (from, to, count)."""

    flipped: int
    compared: int
    kept: int
    pairs: tuple[tuple[int, int, int, int], ...]  # from, to, images, of these kept


@dataclass(frozen=True)
class RoundPage:
    """All about one round; round 0 is the teacher and has a model alone."""

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
    unmatched_corrections: int = 0  # by people, that do not fit the data any more
    unreadable: int = 0
    right: int | None = None  # of the kept ones, where truth is known
    known: int | None = None
    validation: Score | None = None
    test: Score | None = None
    medians: Mapping[str, float] | None = None  # of the last evaluations in training, by split, and `of` how many
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
    """What one round said of a sample."""

    round: int
    label: int
    given: int | None  # the label students see: a person's where there is one; None where it was not kept
    source: str | None
    copies: int
    rank: int | None
    confidence: float
    margin: float
    agreement: float | None
    before: int | None  # the label of the round before
    near: bool  # to the threshold
    rejected: bool  # by a person
    score: float  # how much it is worth a look
    why: str
    top: tuple[tuple[int, float], ...]  # class, probability


@dataclass(frozen=True)
class Sample:
    """A picture of the gallery and its labels through the rounds."""

    id: str
    uri: str
    truth: int | None
    picture: int | None  # its number among the sprites' tiles
    opinions: tuple[Opinion, ...]


@dataclass(frozen=True)
class Pictures:
    """Thumbnails in sprites of `columns` × `columns` tiles, each a data URI."""

    tile: int
    columns: int
    sprites: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures worth a look; `of` is how many candidates there are in the last round."""

    samples: tuple[Sample, ...]
    pictures: Pictures
    of: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything."""

    run: Mapping[str, Any]
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    stages: tuple[Stage, ...]
    rounds: tuple[RoundPage, ...]
    best_round: int | None
    gallery: Gallery
