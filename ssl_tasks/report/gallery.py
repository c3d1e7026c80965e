"""Picks the pseudo-labels that the gallery shows, with their history and pictures.

The review queue comes first, then uncertain and changed ones, and examples of every class.
"""

import heapq
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.pseudo_labels.inspection import review_queue
from selftrain.ssl_tasks.pseudo_labels.schema import Predictions
from selftrain.ssl_tasks.pseudo_labels.views import RunTables
from selftrain.ssl_tasks.report.data import Gallery, Opinion, Pictures, Sample
from selftrain.ssl_tasks.report.pictures import COLUMNS, encode_sheets, make_sheets, size
from selftrain.ssl_tasks.report.questions import looked
from selftrain.ssl_tasks.store.runs import Run

MOST_PICTURES = 1_600  # over all rounds
LAST_ROUND = 0.5  # share of the last round

# Ids are sorted, with ties broken by id, so that the choice does not depend on threads.
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
# The queries that pick a round's pictures, with their shares.
SHARES = ((FLIPPED, 0.12), (NEAR_KEPT, 0.08), (NEAR_LEFT, 0.08), (BY_CLASS, 0.3), (PEOPLES, 0.04), (ANY, 0.08))
QUEUE_SHARE = 0.3


@dataclass
class Picks:
    """The picked samples in order of usefulness, with each round's review queue."""

    ids: dict[str, None]
    queue: dict[tuple[int, str], tuple[float, str]]


def quota(round_number: int, rounds: int) -> int:
    """Returns the number of pictures that a round may pick."""
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
    """Adds the pictures that a round picks; the table `looked` must be this round's."""
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
        if query is ANY and is_last:  # all images of a small data set are shown
            limit = max(limit, MOST_PICTURES - len(picks.ids))
        filled = query.format(limit=limit, each=max(1, limit // (3 * num_classes)))
        for (sample,) in connection.execute(filled).fetchall():
            picks.ids.setdefault(sample)


TOP = 5  # number of probabilities shown per sample
MOST_OF_TEXT = 0.4  # share of the gallery's bytes for text; the rest is for pictures
NO_PICTURES = Pictures(8, COLUMNS, ())


def open_gallery(
    connection: duckdb.DuckDBPyConnection, run: Run, tables: RunTables, picks: Picks, candidates: int, most_bytes: int
) -> Gallery:
    """Returns the gallery: the picked samples, then their pictures, within the given bytes."""
    found = read_picked(connection, tables, picks)
    samples = [sample_of(rows, at, picks) for at, rows in enumerate(found)]
    used = np.cumsum([size(asdict(sample)) for sample in samples])
    samples = samples[: int(np.searchsorted(used, most_bytes * MOST_OF_TEXT, side="right"))]
    if not samples:
        return Gallery((), NO_PICTURES, candidates)
    positions = [int(rows[-1]["position"]) for rows in found[: len(samples)]]
    pictures, note = draw(run, positions, most_bytes - int(used[len(samples) - 1]))
    if pictures is None:
        return Gallery(tuple(replace(one, picture=None) for one in samples), NO_PICTURES, candidates, (note,))
    return Gallery(tuple(samples[: len(pictures.sprites) * COLUMNS**2]), pictures, candidates)


def read_picked(
    connection: duckdb.DuckDBPyConnection, tables: RunTables, picks: Picks
) -> list[list[Mapping[str, Any]]]:
    """Returns, for each picked sample, its rows in the rounds' tables, the oldest round first."""
    found: dict[str, list[Mapping[str, Any]]] = {sample: [] for sample in picks.ids}
    connection.register("picked_ids", pa.table({"sample_id": pa.array(list(found), pa.string())}))
    for one in tables.rounds:
        more = ", p.probs" + (", p.classes" if Predictions.open(one.predictions).sparse else "")
        query = looked(one, more, "AND p.sample_id IN (SELECT sample_id FROM picked_ids)")
        for row in connection.sql(query).to_arrow_table().to_pylist():
            found[row["sample_id"]].append({"round": one.round, **row})
    connection.unregister("picked_ids")
    return list(found.values())


def draw(run: Run, positions: list[int], most_bytes: int) -> tuple[Pictures | None, str]:
    """Returns the pictures, or the reason why there are none; the gallery is useful without them."""
    dataset = run.dataset
    assert dataset is not None
    try:
        pool = Dataset.open(dataset, run.workspace / "cache", run.config.runtime).pool("unlabeled")
        sheets, tile = make_sheets(pool.images, np.array(positions, np.int64))
    except (SelftrainError, OSError) as error:
        return None, f"The images can no longer be read, so the pseudo-labels are shown without them: {error}"
    return encode_sheets(sheets, tile, most_bytes), ""


def sample_of(rows: list[Mapping[str, Any]], picture: int, picks: Picks) -> Sample:
    """Returns one sample from its rows, one per round."""
    last = rows[-1]
    opinions = tuple(opinion_of(row, picks) for row in rows)
    truth = last["truth"]
    return Sample(
        last["sample_id"], last["uri"] or "", truth if truth is not None and truth >= 0 else None, picture, opinions
    )


def opinion_of(row: Mapping[str, Any], picks: Picks) -> Opinion:
    """Returns the prediction and selection of one round from its row."""
    score, why = picks.queue.get((row["round"], row["sample_id"]), (0.0, ""))
    agreement = row["view_agreement"]
    return Opinion(
        round=row["round"],
        label=row["label"],
        given=row["given"],
        source=row["source"],
        copies=row["copies"],
        rank=row["rank_in_class"],
        confidence=digits(row["confidence"]),
        margin=digits(row["margin"]),
        agreement=None if agreement is None else digits(agreement),
        before=row["before"],
        near=row["near"],
        rejected=row["rejected"],
        score=score,
        why=why,
        top=largest(row["probs"], row.get("classes")),
    )


def largest(probs: list[float], classes: list[int] | None) -> tuple[tuple[int, float], ...]:
    """Returns the most probable classes, the most probable first."""
    known = enumerate(probs) if classes is None else zip(classes, probs, strict=True)
    return tuple((one, digits(p)) for one, p in heapq.nlargest(TOP, known, key=lambda pair: (pair[1], -pair[0])))


def digits(value: float) -> float:
    """Rounds to four digits, which keeps the page small."""
    return round(value, 4) if math.isfinite(value) else 0.0
