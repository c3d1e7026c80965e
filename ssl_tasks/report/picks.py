"""Which of the invented labels are worth a picture: the review queue first, then doubts, changes and every class."""

from dataclasses import dataclass

import duckdb
import numpy as np

from selftrain.ssl_tasks.pseudo_labels.looking.inspection import review_queue
from selftrain.ssl_tasks.pseudo_labels.looking.views import RunTables

MOST_PICTURES = 1_600  # over all rounds
LAST_ROUND = 0.5  # its share of them

# Ids rather than rows are sorted, with ties broken by id: the same picture is chosen whatever the threads do.
FLIPPED = "SELECT sample_id FROM looked WHERE before <> label ORDER BY confidence DESC, sample_id LIMIT {limit}"
NEAR_KEPT = "SELECT sample_id FROM looked WHERE near AND given IS NOT NULL ORDER BY confidence, sample_id LIMIT {limit}"
NEAR_LEFT = (
    "SELECT sample_id FROM looked WHERE near AND given IS NULL ORDER BY confidence DESC, sample_id LIMIT {limit}"
)
BY_CLASS = """
    SELECT unnest(max_by(sample_id, (confidence, sample_id), {each}) FILTER (given IS NOT NULL)) AS sample_id
    FROM looked GROUP BY coalesce(given, label)
    UNION SELECT unnest(min_by(sample_id, (confidence, sample_id), {each}) FILTER (given IS NOT NULL))
    FROM looked GROUP BY coalesce(given, label)
    UNION SELECT unnest(max_by(sample_id, (confidence, sample_id), {each}) FILTER (given IS NULL))
    FROM looked GROUP BY label
    ORDER BY sample_id LIMIT {limit}
"""
PEOPLES = "SELECT sample_id FROM looked WHERE source = 'override' OR rejected ORDER BY sample_id LIMIT {limit}"
ANY = "SELECT sample_id FROM looked ORDER BY hash(sample_id), sample_id LIMIT {limit}"
# Shares of a round's pictures, by reason.
SHARES = ((FLIPPED, 0.12), (NEAR_KEPT, 0.08), (NEAR_LEFT, 0.08), (BY_CLASS, 0.3), (PEOPLES, 0.04), (ANY, 0.08))
QUEUE_SHARE = 0.3


@dataclass
class Picks:
    """Samples in the order of their worth, and what the review queue of each round says of them."""

    ids: dict[str, None]
    queue: dict[tuple[int, str], tuple[float, str]]


def quota(round_number: int, rounds: int) -> int:
    """How many pictures a round may choose."""
    if rounds == 1:
        return MOST_PICTURES
    return int(MOST_PICTURES * (LAST_ROUND if round_number == rounds else (1 - LAST_ROUND) / (rounds - 1)))


def pick(
    connection: duckdb.DuckDBPyConnection,
    tables: RunTables,
    round_number: int,
    num_classes: int,
    picks: Picks,
) -> None:
    """Adds a round's choice; the table `looked` is the round's."""
    room = quota(round_number, len(tables.rounds))
    if next(one for one in tables.rounds if one.round == round_number).selection is not None:
        queue = review_queue(tables, round_number, limit=int(room * QUEUE_SHARE))
        for sample, score, why in zip(queue["sample_id"], queue["score"], queue["reasons"], strict=True):
            if score > 0:
                picks.ids.setdefault(sample)
                picks.queue[round_number, sample] = float(np.round(score, 4)), why
    is_last = round_number == max(one.round for one in tables.rounds)
    for query, share in SHARES:
        limit = max(1, int(room * share))
        if query is ANY and is_last:  # a small data set is shown whole
            limit = max(limit, MOST_PICTURES - len(picks.ids))
        filled = query.format(limit=limit, each=max(1, limit // (3 * num_classes)))
        for (sample,) in connection.execute(filled).fetchall():
            picks.ids.setdefault(sample)
