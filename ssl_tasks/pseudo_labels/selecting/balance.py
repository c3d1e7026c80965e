"""How many of each class are shown, and how often: equal, or as a prior; exact or floor + Bernoulli."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Per class: the copies wanted in all, the most confident that are taken, and copies of each of these."""

    total: Counts
    people: Counts  # corrections, which come first
    take: Counts
    ratio: NDArray[np.float64]  # copies of one sample, on average


def wanted_totals(settings: SelectSettings, available: Counts, labeled: Counts) -> Counts:
    """Copies per class that the balance asks for; classes without any sample get none."""
    present = available > 0
    if settings.balance == "none" or not present.any():
        return available.copy()
    if settings.balance == "equal":
        size = settings.per_class or max(1, int(np.median(available[present])))
        return np.where(present, size, 0)
    total = settings.per_class * len(available) if settings.per_class else int(available.sum())
    return np.where(present, largest_remainder(total, class_shares(settings, labeled)), 0)


def class_shares(settings: SelectSettings, labeled: Counts) -> NDArray[np.float64]:
    """The shares of `prior`: as given, or the labelled set's."""
    if settings.prior is None:
        return labeled / labeled.sum()
    if len(settings.prior) != len(labeled):
        raise ConfigError(
            f"select.prior has {len(settings.prior)} shares; expected one for each of {len(labeled)} classes"
        )
    prior = np.array(settings.prior)
    return prior / prior.sum()


def largest_remainder(total: int, shares: NDArray[np.float64]) -> Counts:
    """Whole numbers in the given shares that sum to the total."""
    exact = total * shares
    counts = np.floor(exact).astype(np.int64)
    first = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[first] += 1
    return counts


def exact_plan(total: Counts, available: Counts, people: Counts) -> Plan:
    """The most confident fill what people's corrections leave; where they are too few, all are repeated."""
    take = np.clip(total - people, 0, available)
    return Plan(total, people, take, share(total, take + people))


def bernoulli_plan(total: Counts, available: Counts, people: Counts, reached: Counts) -> Plan:
    """The official scheme. `reached`: samples in the bins of .01 that are needed, whole, to reach the total.

    Where these are more than the total they are thinned; people's corrections are not.
    """
    room = np.clip(total - people, 0, None)
    take = np.where(room > 0, np.minimum(available, reached), 0)
    thinned = take > room
    return Plan(total, people, take, np.where(thinned, share(room, take), share(total, take + people)))


def share(part: Counts, whole: Counts) -> NDArray[np.float64]:
    """part ÷ whole, 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
