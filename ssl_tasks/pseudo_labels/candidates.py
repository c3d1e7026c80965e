"""Defines in DuckDB which pseudo-labels a selection may accept, and counts them by class and confidence."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from selftrain.ssl_tasks.pseudo_labels.engine import fetch, read_parquet
from selftrain.ssl_tasks.pseudo_labels.promise import Ladder
from selftrain.ssl_tasks.pseudo_labels.schema import Predictions
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings

# Bins of confidence: finer near 1, and fewer if there are many classes.
FINE_BINS = "floor({bins} * (1 - sqrt(1 - least(confidence, 1::FLOAT)::DOUBLE)))::INTEGER"
MOST_BINS, LEAST_BINS, CELLS = 1024, 64, 2**18

EXCLUDED_IDS = """
    WITH held_out AS (SELECT DISTINCT content FROM {manifest} WHERE split IN ('validation', 'test') AND error IS NULL)
    SELECT sample_id, CASE WHEN split = 'unlabeled' THEN 'image of validation or test' ELSE split END AS reason
    FROM {manifest}
    WHERE split <> 'unlabeled' OR content IN (SELECT content FROM held_out WHERE content IS NOT NULL)
"""


def define_excluded(connection: duckdb.DuckDBPyConnection, manifest: Path) -> None:
    """Creates the table `excluded`: ids of images that are labelled, held out or equal to a held-out image."""
    connection.execute("CREATE TEMP TABLE excluded AS " + EXCLUDED_IDS.format(manifest=read_parquet(manifest)))


def define_candidates(
    connection: duckdb.DuckDBPyConnection, predictions: Predictions, settings: SelectSettings
) -> None:
    """Creates the views `predictions` and `eligible`, which may be accepted and pass the rules of one sample.

    It also creates the tables `barred` (ids of samples that may not be accepted) and `barred_rows` (their predictions).
    """
    rules = sample_rules(settings)
    connection.execute(
        f"CREATE TEMP VIEW predictions AS SELECT *, file_index, file_row_number FROM {predictions.table()}"
    )
    connection.execute(
        "CREATE TEMP TABLE barred AS SELECT sample_id FROM excluded UNION SELECT sample_id FROM overrides"
    )
    connection.execute(
        "CREATE TEMP TABLE barred_rows AS SELECT sample_id, label, confidence, margin, view_agreement "
        "FROM predictions SEMI JOIN barred USING (sample_id) WHERE label IS NOT NULL"
    )
    connection.execute(
        f"CREATE TEMP VIEW eligible AS SELECT * FROM predictions ANTI JOIN barred USING (sample_id) "
        f"WHERE label IS NOT NULL AND {rules}"
    )


def sample_rules(settings: SelectSettings) -> str:
    """Returns the SQL condition on margin and view agreement."""
    rules = [("margin", settings.min_margin), ("view_agreement", settings.min_agreement)]
    return " AND ".join(f"{column} >= {float32(least)}" for column, least in rules if least is not None) or "true"


def float32(value: float) -> str:
    """Returns an SQL literal in the table's precision, so that a stored 0.95 passes a threshold of 0.95."""
    return f"{float(np.float32(value))!r}::FLOAT"


@dataclass(frozen=True)
class Histogram:
    """The number of eligible samples and the least confidence of each bin, per class, most confident first."""

    ladders: tuple[Ladder, ...]
    offered: NDArray[np.int64]  # samples per class, before the rules of one sample

    def passing(self, thresholds: NDArray[np.float32]) -> NDArray[np.int64]:
        """Counts the images of each class with at least the confidence of its threshold, which must be an edge."""
        pairs = zip(self.ladders, thresholds, strict=True)
        return np.array([ladder.count[ladder.confidence >= least].sum() for ladder, least in pairs], np.int64)

    @property
    def totals(self) -> NDArray[np.int64]:
        return np.array([ladder.count.sum() for ladder in self.ladders], np.int64)

    def reached(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns, per class, the size of the fewest whole bins that hold the `rank` most confident samples, or all."""
        return self.passing(self.cut_at(ranks))

    def cut_at(self, ranks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns, per class, a bin's edge with at least the `rank` most confident samples above it; inf for rank 0."""
        return np.array([above for above, _, _ in self.bins_of(ranks)], np.float32)

    def bins_of(self, ranks: NDArray[np.int64]) -> Iterator[tuple[float, float, int]]:
        """Yields, per class, the bin of the `rank`-th most confident sample: edge, next edge, rank in it."""
        for ladder, rank in zip(self.ladders, ranks, strict=True):
            if rank <= 0 or not len(ladder.count):
                yield np.inf, np.inf, 0
                continue
            reached = np.cumsum(ladder.count)
            number = min(int(np.searchsorted(reached, rank)), len(reached) - 1)
            above = float(ladder.confidence[number - 1]) if number else np.inf
            yield float(ladder.confidence[number]), above, int(rank - (reached[number - 1] if number else 0))


def fine_bins(num_classes: int) -> str:
    """Returns the SQL expression for a row's bin."""
    return FINE_BINS.format(bins=min(MOST_BINS, max(LEAST_BINS, CELLS // num_classes)))


def measure(
    connection: duckdb.DuckDBPyConnection, num_classes: int, split_at: float, settings: SelectSettings
) -> Histogram:
    """Counts samples by label and confidence in one pass. `split_at` becomes an edge, so counts above it are exact.

    Barred rows are counted too and then subtracted, because looking up every id would cost more than everything else.
    """
    counted = (
        f"SELECT label, {fine_bins(num_classes)} AS bin, confidence >= {float32(split_at)} AS above, "
        f"min(confidence) AS edge, count(*) AS offered, count(*) FILTER ({sample_rules(settings)}) AS eligible "
        "FROM {table} WHERE label IS NOT NULL GROUP BY ALL"
    )
    query = (
        f"SELECT c.label, c.edge, c.offered - coalesce(b.offered, 0) AS offered, "
        f"c.eligible - coalesce(b.eligible, 0) AS count FROM ({counted.format(table='predictions')}) c "
        f"LEFT JOIN ({counted.format(table='barred_rows')}) b USING (label, bin, above) ORDER BY c.label, c.edge DESC"
    )
    return histogram_of(fetch(connection, query), num_classes)


def histogram_of(rows: dict[str, NDArray[Any]], num_classes: int) -> Histogram:
    """Builds a histogram from ordered rows of label, edge, offered and count."""
    starts = np.searchsorted(rows["label"], np.arange(num_classes + 1))
    ladders, offered = [], np.zeros(num_classes, np.int64)
    for label, (first, last) in enumerate(itertools.pairwise(starts)):
        filled = first + np.flatnonzero(rows["count"][first:last])
        ladders.append(Ladder(rows["edge"][filled].astype(np.float32), rows["count"][filled].astype(np.int64)))
        offered[label] = rows["offered"][first:last].sum()
    return Histogram(tuple(ladders), offered)


def count_per_class(connection: duckdb.DuckDBPyConnection, query: str, num_classes: int) -> NDArray[np.int64]:
    """Returns the number of rows per class of a query that has a column `label`."""
    rows = fetch(connection, f"SELECT label, count(*) AS n FROM ({query}) GROUP BY label")
    counts = np.zeros(num_classes, np.int64)
    counts[rows["label"].astype(np.int64)] = rows["n"]
    return counts


def per_class_table(connection: duckdb.DuckDBPyConnection, name: str, **columns: NDArray[np.generic]) -> None:
    """Creates a table with a row per class: `label` and the given columns."""
    size = len(next(iter(columns.values())))
    rows = pa.table({"label": pa.array(range(size), pa.int32()), **{key: pa.array(v) for key, v in columns.items()}})
    connection.register("rows_to_copy", rows)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM rows_to_copy")
    connection.unregister("rows_to_copy")
