"""The gallery: the picked samples, what every round said of them, and their pictures."""

import heapq
import math
from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ssl_tasks.artifacts import Artifact
from ssl_tasks.data.dataset import Dataset
from ssl_tasks.errors import SelftrainError
from ssl_tasks.pseudo_labels.schema import Predictions
from ssl_tasks.pseudo_labels.views import RunTables
from ssl_tasks.report.data import Gallery, Opinion, Pictures, Sample
from ssl_tasks.report.picks import Picks
from ssl_tasks.report.pictures import COLUMNS, encode_sheets, make_sheets
from ssl_tasks.report.questions import looked
from ssl_tasks.runs import Run

TOP = 5  # probabilities shown of a sample
NO_PICTURES = Pictures(8, COLUMNS, ())


def open_gallery(
    connection: duckdb.DuckDBPyConnection, run: Run, tables: RunTables, picks: Picks, candidates: int, most_bytes: int
) -> Gallery:
    """Reads the picked samples from every round's tables, and their images."""
    ids = list(picks.ids)
    connection.register("picked_ids", pa.table({"sample_id": pa.array(ids, pa.string())}))
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in tables.rounds:
        sparse = Predictions.open(one.predictions).sparse
        more = ", p.probs" + (", p.classes" if sparse else "")
        query = looked(one, more, "AND p.sample_id IN (SELECT sample_id FROM picked_ids)")
        for row in connection.sql(query).to_arrow_table().to_pylist():
            found.setdefault(row["sample_id"], []).append({"round": one.round, **row})
    connection.unregister("picked_ids")
    rows = [found[sample] for sample in ids if sample in found]
    pictures, note = draw(run, [int(row[-1]["position"]) for row in rows], most_bytes)
    drawn = len(rows) if pictures is None else len(pictures.sprites) * COLUMNS**2
    samples = (sample_of(row, None if pictures is None else at, picks) for at, row in enumerate(rows[:drawn]))
    return Gallery(tuple(samples), pictures or NO_PICTURES, candidates, (note,) if note else ())


def draw(run: Run, positions: list[int], most_bytes: int) -> tuple[Pictures | None, str]:
    """The pictures, or why there are none: labels can be read without them."""
    dataset = run.dataset
    assert isinstance(dataset, Artifact)
    try:
        pool = Dataset.open(dataset, run.workspace / "cache", run.config.runtime).pool("unlabeled")
        sheets, tile = make_sheets(pool.images, np.array(positions, np.int64))
    except (SelftrainError, OSError) as error:
        return None, f"The images cannot be read any more, so labels are shown without them: {error}"
    return encode_sheets(sheets, tile, most_bytes), ""


def sample_of(rows: list[Mapping[str, Any]], picture: int | None, picks: Picks) -> Sample:
    """One sample from its rows, a round each."""
    last = rows[-1]
    opinions = tuple(opinion_of(row, picks) for row in rows)
    truth = last["truth"]
    return Sample(
        last["sample_id"], last["uri"] or "", truth if truth is not None and truth >= 0 else None, picture, opinions
    )


def opinion_of(row: Mapping[str, Any], picks: Picks) -> Opinion:
    """What one round said."""
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
    """The most probable classes, most probable first."""
    known = enumerate(probs) if classes is None else zip(classes, probs, strict=True)
    return tuple((one, digits(p)) for one, p in heapq.nlargest(TOP, known, key=lambda pair: (pair[1], -pair[0])))


def digits(value: float) -> float:
    """Four digits: what a person reads, and what a file needs to hold."""
    return round(value, 4) if math.isfinite(value) else 0.0
