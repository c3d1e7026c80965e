"""The pseudo-labels that may be chosen, as DuckDB sees them, and their distribution by class and confidence."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ssl_tasks.pseudo_labels.engine import fetch, fetch_number, read_parquet
from ssl_tasks.pseudo_labels.promise import Ladder
from ssl_tasks.pseudo_labels.schema import Predictions
from ssl_tasks.pseudo_labels.settings import SelectSettings

# 1,024 bins, finer where confidence is near 1: the last one begins at 1 - 1e-6.
FINE_BINS = "floor(1024 * (1 - sqrt(1 - least(confidence, 1::FLOAT)::DOUBLE)))"

EXCLUDED_IDS = """
    WITH held_out AS (SELECT DISTINCT content FROM {manifest} WHERE split IN ('validation', 'test') AND error IS NULL)
    SELECT sample_id, CASE WHEN split = 'unlabeled' THEN 'image of validation or test' ELSE split END AS reason
    FROM {manifest}
    WHERE split <> 'unlabeled' OR content IN (SELECT content FROM held_out WHERE content IS NOT NULL)
"""


def define_excluded(connection: duckdb.DuckDBPyConnection, manifest: Path) -> None:
    """Table `excluded`: ids that get no pseudo-label, being labelled, held out, or the same image as a held-out one."""
    connection.execute("CREATE TEMP TABLE excluded AS " + EXCLUDED_IDS.format(manifest=read_parquet(manifest)))


def define_candidates(
    connection: duckdb.DuckDBPyConnection, predictions: Predictions, settings: SelectSettings
) -> None:
    """Views `candidates` and, of these, `eligible`: what passes the rules that look at one sample alone."""
    connection.execute(
        "CREATE TEMP TABLE barred AS SELECT sample_id FROM excluded UNION SELECT sample_id FROM overrides"
    )
    unbarred = "ANTI JOIN barred USING (sample_id)" if fetch_number(connection, "SELECT count(*) FROM barred") else ""
    connection.execute(
        f"CREATE TEMP VIEW predictions AS SELECT *, file_index, file_row_number FROM {predictions.table()}"
    )
    connection.execute(f"CREATE TEMP VIEW candidates AS SELECT * FROM predictions {unbarred} WHERE label IS NOT NULL")
    connection.execute(f"CREATE TEMP VIEW eligible AS SELECT * FROM candidates WHERE {sample_rules(settings)}")


def sample_rules(settings: SelectSettings) -> str:
    """SQL condition of margin and view agreement."""
    rules = [("margin", settings.min_margin), ("view_agreement", settings.min_agreement)]
    return " AND ".join(f"{column} >= {float32(least)}" for column, least in rules if least is not None) or "true"


def float32(value: float) -> str:
    """SQL literal in the precision of the table, so that a stored 0.95 passes a threshold of 0.95."""
    return f"{float(np.float32(value))!r}::FLOAT"


@dataclass(frozen=True)
class Histogram:
    """Per class, from the most confident bin down: how many candidates each bin holds and its least confidence."""

    ladders: tuple[Ladder, ...]

    def passing(self, thresholds: NDArray[np.float32]) -> NDArray[np.int64]:
        """How many of each class are at least as confident as its threshold, which must be an edge."""
        pairs = zip(self.ladders, thresholds, strict=True)
        return np.array([ladder.count[ladder.confidence >= least].sum() for ladder, least in pairs], np.int64)

    @property
    def totals(self) -> NDArray[np.int64]:
        return np.array([ladder.count.sum() for ladder in self.ladders], np.int64)

    def reached(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Per class the size of the fewest whole bins that hold the `rank` most confident, or of all."""
        return self.passing(self.cut_at(ranks))

    def cut_at(self, ranks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Per class a bin's edge above which at least the `rank` most confident lie; inf for rank 0."""
        return np.array([above for above, _, _ in self.bins_of(ranks)], np.float32)

    def bins_of(self, ranks: NDArray[np.int64]) -> Iterator[tuple[float, float, int]]:
        """Per class the bin that holds the `rank`-th most confident: its edge, the edge above, the rank inside."""
        for ladder, rank in zip(self.ladders, ranks, strict=True):
            if rank <= 0 or not len(ladder.count):
                yield np.inf, np.inf, 0
                continue
            reached = np.cumsum(ladder.count)
            number = min(int(np.searchsorted(reached, rank)), len(reached) - 1)
            above = float(ladder.confidence[number - 1]) if number else np.inf
            yield float(ladder.confidence[number]), above, int(rank - (reached[number - 1] if number else 0))


def measure(
    connection: duckdb.DuckDBPyConnection, table: str, num_classes: int, split_at: float, bin_of: str = FINE_BINS
) -> Histogram:
    """One pass over the table's label and confidence. `split_at` becomes an edge, so that counts above it are exact."""
    rows = fetch(
        connection,
        f"SELECT label, min(confidence) AS edge, count(*) AS count FROM {table} "
        f"GROUP BY label, {bin_of}, confidence >= {float32(split_at)} ORDER BY label, edge DESC",
    )
    starts = np.searchsorted(rows["label"], np.arange(num_classes + 1))
    return Histogram(
        tuple(
            Ladder(rows["edge"][first:last].astype(np.float32), rows["count"][first:last].astype(np.int64))
            for first, last in itertools.pairwise(starts)
        )
    )


def count_per_class(connection: duckdb.DuckDBPyConnection, query: str, num_classes: int) -> NDArray[np.int64]:
    """Rows per class of a query that has a `label`."""
    rows = fetch(connection, f"SELECT label, count(*) AS n FROM ({query}) GROUP BY label")
    counts = np.zeros(num_classes, np.int64)
    counts[rows["label"].astype(np.int64)] = rows["n"]
    return counts


def per_class_table(connection: duckdb.DuckDBPyConnection, name: str, **columns: NDArray[np.generic]) -> None:
    """A small table with a row per class: `label` and the columns given."""
    size = len(next(iter(columns.values())))
    rows = pa.table({"label": pa.array(range(size), pa.int32()), **{key: pa.array(v) for key, v in columns.items()}})
    connection.register("rows_to_copy", rows)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM rows_to_copy")
    connection.unregister("rows_to_copy")
