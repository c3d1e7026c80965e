"""Joins a round's predictions, selection and ground truth into one table, and computes the numbers of the charts."""

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.pseudo_labels.engine import read_parquet
from selftrain.ssl_tasks.pseudo_labels.inspection import NEAR
from selftrain.ssl_tasks.pseudo_labels.schema import OVERRIDES
from selftrain.ssl_tasks.pseudo_labels.views import RoundTables
from selftrain.ssl_tasks.report.data import Confusion, Flips, Histogram

BINS = 40
MOST_HISTOGRAMS = 3_000  # histograms of single classes, over all rounds
MOST_CELLS = 60_000  # cells of confusion matrices, over all rounds
MOST_PAIRS = 60

# Labelled images are predicted too, but get no pseudo-labels.
LOOKED = """
    SELECT p.sample_id, p.position, p.label, p.confidence, p.margin, p.view_agreement, m.truth, m.uri,
        s.label AS given, s.source, coalesce(s.copies, 0) AS copies, s.rank_in_class, b.label AS before,
        coalesce(abs(p.confidence - t.threshold) <= {near}, false) AS near, o.sample_id IS NOT NULL AS rejected {more}
    FROM predictions p JOIN manifest m USING (sample_id)
    JOIN thresholds t ON t.round = p.round AND t.label = p.label
    LEFT JOIN selection s ON s.round = p.round AND s.sample_id = p.sample_id
    LEFT JOIN predictions b ON b.round = {previous} AND b.sample_id = p.sample_id
    LEFT JOIN {rejections} o ON o.sample_id = p.sample_id
    WHERE p.round = {round} AND p.label IS NOT NULL AND m.split = 'unlabeled' {only}
"""
NO_REJECTIONS = "(SELECT NULL::VARCHAR AS sample_id WHERE false)"
Counts = NDArray[np.int64]


def looked(one: RoundTables, more: str = "", only: str = "") -> str:
    """Returns the SQL of a table with a round's predictions, selection, ground truth and corrections."""
    rejections = NO_REJECTIONS
    if one.selection is not None and (path := one.selection / OVERRIDES).exists():
        rejections = f"(SELECT sample_id FROM {read_parquet(path)} WHERE label IS NULL)"
    return LOOKED.format(
        round=one.round, previous=one.round - 1, near=f"{NEAR}::FLOAT", rejections=rejections, more=more, only=only
    )


@dataclass(frozen=True)
class Questions:
    """Queries the table `looked` of one round."""

    connection: duckdb.DuckDBPyConnection
    num_classes: int
    rounds: int

    def rows(self, query: str) -> Iterator[tuple[int, ...]]:
        """Returns the rows of a query whose columns are all numbers."""
        return ((*map(int, row),) for row in self.connection.execute(query).fetchall())

    def histogram(self) -> Histogram:
        """Returns the histogram of confidence, by class if there are not too many."""
        counts = np.zeros((2, self.num_classes, BINS), np.int64)
        query = f"""
            SELECT label, least(floor(confidence * {BINS}), {BINS} - 1)::INTEGER AS bin,
                count(*) FILTER (given IS NOT NULL), count(*) FILTER (given IS NULL)
            FROM looked GROUP BY ALL
        """
        for label, bin_number, kept, left in self.rows(query):
            counts[:, label, bin_number] = kept, left
        by_class: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        if self.num_classes * self.rounds <= MOST_HISTOGRAMS:
            filled = np.flatnonzero(counts.any(axis=(0, 2)))
            by_class = {int(one): (plain(counts[0, one]), plain(counts[1, one])) for one in filled}
        return Histogram(BINS, plain(counts[0].sum(axis=0)), plain(counts[1].sum(axis=0)), by_class)

    def label_confusion(self) -> Confusion | None:
        """Returns the confusion of accepted pseudo-labels and ground truth."""
        query = """
            SELECT truth, given, count(*) FROM looked
            WHERE truth >= 0 AND given IS NOT NULL AND source = 'model' GROUP BY ALL
        """
        cells = list(self.rows(query))
        return sparse_confusion(np.array(cells, np.int64), self.rounds) if cells else None

    def flips(self) -> Flips:
        """Returns the changes of predicted classes since the previous round."""
        changed = list(
            self.rows(f"""
                SELECT before, label, count(*) AS images, count(given) FROM looked
                WHERE before <> label GROUP BY ALL ORDER BY images DESC, before, label LIMIT {MOST_PAIRS}
            """)
        )
        query = (
            "SELECT count(*) FILTER (before <> label), count(before), count(given) FILTER (before <> label) FROM looked"
        )
        flipped, compared, kept = next(self.rows(query))
        return Flips(flipped, compared, kept, tuple((a, b, images, of) for a, b, images, of in changed))

    def right_by_class(self) -> tuple[Counts, Counts]:
        """Returns, per class, how many accepted pseudo-labels are correct, and of how many the ground truth is
        known."""
        found = np.zeros((2, self.num_classes), np.int64)
        query = """
            SELECT given, count(*) FILTER (given = truth), count(*) FROM looked
            WHERE truth >= 0 AND given IS NOT NULL AND source = 'model' GROUP BY given
        """
        for label, right, known in self.rows(query):
            found[:, label] = right, known
        return found[0], found[1]

    def count(self) -> int:
        """Returns the number of predictions."""
        return next(self.rows("SELECT count(*) FROM looked"))[0]


def sparse_confusion(cells: Counts, rounds: int) -> Confusion:
    """Builds a confusion from rows (truth, predicted, count); of too many, it keeps the diagonal and the largest
    others."""
    cells = cells[cells[:, 2] > 0]
    on_diagonal = cells[:, 0] == cells[:, 1]
    right, total = int(cells[on_diagonal, 2].sum()), int(cells[:, 2].sum())
    most = max(200, MOST_CELLS // max(rounds, 1) // 2)
    order = np.lexsort((cells[:, 1], cells[:, 0], -cells[:, 2], ~on_diagonal))[:most]
    rows = tuple((int(truth), int(said), int(count)) for truth, said, count in cells[order])
    return Confusion(rows, right, total, len(rows) == len(cells))


def plain(values: Counts) -> tuple[int, ...]:
    """Converts NumPy's numbers to Python's."""
    return tuple(values.tolist())
