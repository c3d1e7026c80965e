"""Chooses the threshold and the number of rows of each class.

A threshold is fixed, FlexMatch's adaptive one, a quantile, or one that keeps the promise of `target_precision`. Numbers
of rows are balanced equally or by a prior, with exact counts or by Noisy Student's floor + Bernoulli.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.pseudo_labels.candidates import Histogram, per_class_table, sample_rules
from selftrain.ssl_tasks.pseudo_labels.engine import fetch, read_parquet
from selftrain.ssl_tasks.pseudo_labels.promise import (
    HeldOut,
    Ladder,
    Promise,
    lower_bound,
    promised_thresholds,
)
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings

Thresholds = NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """The threshold of each class, and the promise behind them if the settings ask for one."""

    thresholds: Thresholds
    promise: Promise | None = None


def choose_thresholds(
    connection: duckdb.DuckDBPyConnection, settings: SelectSettings, histogram: Histogram, held_out: HeldOut
) -> Chosen:
    """Returns, per class, the highest of the thresholds that the settings ask for."""
    fixed = np.float32(settings.threshold or 0.0)
    floor = np.full(len(histogram.ladders), fixed, np.float32)
    if settings.adaptive:
        floor = fixed * adaptive_share(histogram.passing(floor), int(histogram.totals.sum()))
    if settings.quantile is not None:
        floor = np.maximum(floor, quantile_cut(connection, histogram, settings.quantile))
    if settings.target_precision is None:
        return Chosen(floor)
    promise = keep_promise(settings.target_precision, settings.precision_confidence, histogram, held_out, floor)
    return Chosen(np.maximum(floor, promise.thresholds), promise)


def adaptive_share(learned: NDArray[np.int64], total: int) -> Thresholds:
    """Returns FlexMatch's factor on the threshold: β/(2 - β), β = σ(c) ÷ max(max σ, images that pass for no class)."""
    beta = learned / max(learned.max(initial=0), total - learned.sum(), 1)
    return (beta / (2 - beta)).astype(np.float32)


def quantile_cut(connection: duckdb.DuckDBPyConnection, histogram: Histogram, share: float) -> Thresholds:
    """Returns, per class, the exact confidence below which at most `share` of the class lies."""
    keep = histogram.totals - np.floor(share * histogram.totals).astype(np.int64)
    edges, above, ranks = (np.array(column) for column in zip(*histogram.bins_of(keep), strict=True))
    per_class_table(
        connection, "cuts", edge=edges.astype(np.float32), above=above.astype(np.float32), rank=ranks.astype(np.int64)
    )
    rows = fetch(
        connection,
        """
        SELECT label, confidence FROM (
            SELECT label, confidence, rank, row_number() OVER (PARTITION BY label ORDER BY confidence DESC) AS number
            FROM eligible JOIN cuts USING (label) WHERE confidence >= edge AND confidence < above
        ) WHERE number = rank
        """,
    )
    result = np.full(len(keep), np.inf, np.float32)
    result[rows["label"].astype(np.int64)] = rows["confidence"]
    return result


def keep_promise(
    target: float, confidence: float, histogram: Histogram, held_out: HeldOut, floor: Thresholds
) -> Promise:
    """Returns thresholds that promise a precision, among those that the other rules allow."""
    if not len(held_out.correct):
        raise ConfigError(
            "select.target_precision needs held-out labels, and the predictions have none. Set data.split.validation, "
            "or (with predict.temperature=fit) more of it: images that the temperature was fitted on do not count"
        )
    ladders = [above(ladder, least) for ladder, least in zip(histogram.ladders, floor, strict=True)]
    rows = held_out.confidence >= floor[held_out.predicted]
    eligible = HeldOut(held_out.predicted[rows], held_out.confidence[rows], held_out.correct[rows])
    return promised_thresholds(eligible, ladders, target, confidence)


def above(ladder: Ladder, least: np.float32) -> Ladder:
    """Returns the part of a ladder above a threshold."""
    return replace(
        ladder, confidence=ladder.confidence[ladder.confidence >= least], count=ladder.count[ladder.confidence >= least]
    )


def read_held_out(connection: duckdb.DuckDBPyConnection, path: Path, settings: SelectSettings) -> HeldOut:
    """Reads the held-out images that pass the rules of one sample, without those that the temperature was fitted on."""
    rows = fetch(
        connection,
        f"SELECT label, confidence, label = truth AS correct FROM {read_parquet(path)} "
        f"WHERE NOT fitted AND {sample_rules(settings)} ORDER BY sample_id",
    )
    return HeldOut(
        rows["label"].astype(np.int64), rows["confidence"].astype(np.float32), rows["correct"].astype(np.bool_)
    )


def estimated_precision(
    held_out: HeldOut, thresholds: Thresholds, confidence: float
) -> list[tuple[float | None, float | None, int]]:
    """Returns, per class, the accuracy on held-out images above the threshold, its lower bound, and their number."""
    result: list[tuple[float | None, float | None, int]] = []
    for label, least in enumerate(thresholds):
        kept = (held_out.predicted == label) & (held_out.confidence >= least)
        right, total = int(held_out.correct[kept].sum()), int(kept.sum())
        bound = lower_bound(right, total, 1 - confidence) if total else None
        result.append((right / total if total else None, bound, total))
    return result


Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The plan of each class: the wanted copies in all, the number of accepted samples, and the copies of each."""

    total: Counts
    people: Counts  # corrections by people, which come first
    take: Counts
    ratio: NDArray[np.float64]  # copies of one sample, on average


def wanted_totals(settings: SelectSettings, available: Counts, labeled: Counts) -> Counts:
    """Returns the copies per class that the balance asks for; classes without any sample get none."""
    present = available > 0
    if settings.balance == "none" or not present.any():
        return available.copy()
    if settings.balance == "equal":
        size = settings.per_class or max(1, int(np.median(available[present])))
        return np.where(present, size, 0)
    total = settings.per_class * len(available) if settings.per_class else int(available.sum())
    return np.where(present, largest_remainder(total, class_shares(settings, labeled)), 0)


def class_shares(settings: SelectSettings, labeled: Counts) -> NDArray[np.float64]:
    """Returns the shares of `prior`: as given, or those of the labelled images."""
    if settings.prior is None:
        return labeled / labeled.sum()
    if len(settings.prior) != len(labeled):
        raise ConfigError(
            f"select.prior has {len(settings.prior)} shares; expected one for each of {len(labeled)} classes"
        )
    prior = np.array(settings.prior)
    return prior / prior.sum()


def largest_remainder(total: int, shares: NDArray[np.float64]) -> Counts:
    """Returns whole numbers that sum to the total and are nearest to the given shares."""
    exact = total * shares
    counts = np.floor(exact).astype(np.int64)
    first = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[first] += 1
    return counts


def exact_plan(total: Counts, available: Counts, people: Counts) -> Plan:
    """Accepts corrections first, then the most confident samples; repeats all samples if they are too few."""
    take = np.clip(total - people, 0, available)
    return Plan(total, people, take, share(total, take + people))


def bernoulli_plan(total: Counts, available: Counts, people: Counts, reached: Counts) -> Plan:
    """Plans by Noisy Student's official scheme; `reached`: samples in the whole bins of .01 that reach the total.

    If these are more than the total, they are thinned at random; people's corrections are not.
    """
    room = np.clip(total - people, 0, None)
    take = np.where(room > 0, np.minimum(available, reached), 0)
    thinned = take > room
    return Plan(total, people, take, np.where(thinned, share(room, take), share(total, take + people)))


def share(part: Counts, whole: Counts) -> NDArray[np.float64]:
    """Returns part ÷ whole; 0 ÷ 0 is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
