"""Collects the page of one round: the JSON files and tables of its artifacts, and the numbers of its charts.

The charts are computed from one table that joins the round's predictions, selection and ground truth.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selftrain.ssl_tasks.pseudo_labels.engine import read_parquet
from selftrain.ssl_tasks.pseudo_labels.inspection import NEAR
from selftrain.ssl_tasks.pseudo_labels.schema import OVERRIDES, STATS
from selftrain.ssl_tasks.pseudo_labels.views import RoundTables
from selftrain.ssl_tasks.report.data import ClassBalance, Confusion, Flips, Histogram, Reliability, RoundPage, Score
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.runs import RoundArtifacts, tables_folder

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


MOST_POINTS = 200  # points of a learning curve
MOST_BALANCES = 30_000  # rows by class, over the last rounds


def round_page(
    one: RoundArtifacts,
    labeled: tuple[int, ...],
    tables: RoundTables | None,
    connection: duckdb.DuckDBPyConnection,
    rounds: int,
) -> RoundPage:
    """Returns the page of a round; if the round has predictions, it creates the table `looked`."""
    page: dict[str, Any] = {
        "round": one.round,
        "model": "teacher" if one.round == 0 else f"student {one.round}",
        "labeled": sum(labeled),
        **model_facts(one.model),
        **evaluation_facts(one.evaluation, rounds),
    }
    if one.gate is not None:
        page["gate"] = read_json(one.gate, "gate.json")
    if tables is not None and one.predictions is not None:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE looked AS {looked(tables)}")
        questions = Questions(connection, len(labeled), rounds)
        page |= selection_facts(one, labeled, questions)
        page["unreadable"] = int(one.predictions.summary.get("unreadable", 0))
    return RoundPage(**page)


def model_facts(model: Artifact | None) -> dict[str, Any]:
    """Returns the network, the method and the learning curve of a model."""
    if model is None:
        return {"architecture": "", "method": ""}
    settings = model.manifest.get("settings", {})
    network = settings.get("model", {})
    width = f", width {network['width']}" if network.get("width") else ""
    facts = {
        "architecture": f"{network.get('name', model.summary.get('model', 'given'))}{width}",
        "method": "fine-tuning" if "layers" in settings else settings.get("method", {}).get("name", "given"),
        "warnings": tuple(model.summary.get("warnings", ())),
    }
    return facts | {"curve": learning_curve(model), "medians": medians(model)}


def medians(model: Artifact) -> dict[str, float] | None:
    """Returns the median accuracies of the last evaluations, if the recipe sets `median_of`."""
    if "median_of" not in model.summary:
        return None
    found = {split: model.summary[f"median_{split}_accuracy"] for split in ("validation", "test")}
    return {"of": model.summary["median_of"], **{split: one for split, one in found.items() if one is not None}}


def learning_curve(model: Artifact) -> tuple[tuple[int, float], ...]:
    """Returns the validation accuracy by step, thinned out evenly if there are many points."""
    path = tables_folder(model) / "history.parquet"
    if not path.exists() or "validation_accuracy" not in pq.read_schema(path).names:
        return ()
    table = pq.read_table(path, columns=["step", "validation_accuracy"])
    steps, accuracy = (column.to_numpy().astype(float) for column in table.columns)
    measured = np.flatnonzero(np.isfinite(accuracy))
    if len(measured) > MOST_POINTS:
        measured = measured[np.linspace(0, len(measured) - 1, MOST_POINTS).astype(int)]
    return tuple((int(steps[at]), round(float(accuracy[at]), 5)) for at in measured)


def evaluation_facts(evaluation: Artifact | None, rounds: int) -> dict[str, Any]:
    """Returns the scores, and the reliability and confusion on validation."""
    if evaluation is None:
        return {}
    metrics = read_json(evaluation, "metrics.json")
    facts: dict[str, Any] = {split: score(metrics.get(split, {})) for split in ("validation", "test")}
    if metrics.get("validation", {}).get("count"):
        facts["reliability"] = reliability(metrics["validation"], metrics.get("temperature"))
        matrix = np.array(read_json(evaluation, "confusion.json")["validation"], np.int64)
        facts["confusion"] = dense_confusion(matrix, rounds)
    return facts


def score(metrics: Mapping[str, Any]) -> Score | None:
    """Returns an accuracy with its interval; None if there were no images."""
    if not metrics.get("count"):
        return None
    interval = metrics["accuracy_interval"]
    return Score(metrics["accuracy"], interval["low"], interval["high"], metrics["count"])


def reliability(metrics: Mapping[str, Any], temperature: float | None) -> Reliability:
    """Returns the reliability, with only the bins that hold images."""
    tempered = metrics.get("tempered", {})
    return Reliability(
        bins=tuple(one for one in metrics["reliability"] if one["count"]),
        tempered=tuple(one for one in tempered.get("reliability", ()) if one["count"]),
        ece=metrics["ece"],
        tempered_ece=tempered.get("ece"),
        temperature=temperature,
    )


def dense_confusion(matrix: np.ndarray, rounds: int) -> Confusion:
    """Builds a confusion from a matrix whose rows are the ground truth."""
    truth, said = np.nonzero(matrix)
    return sparse_confusion(np.stack([truth, said, matrix[truth, said]], axis=1).astype(np.int64), rounds)


def selection_facts(one: RoundArtifacts, labeled: tuple[int, ...], questions: Questions) -> dict[str, Any]:
    """Returns the pseudo-labels by class, with their accuracy where the ground truth is known."""
    facts: dict[str, Any] = {"candidates": questions.count(), "histogram": questions.histogram()}
    if one.round > 1:
        facts["flips"] = questions.flips()
    if one.selection is None:
        return facts
    stats = read_json(one.selection, STATS)
    detailed = (questions.rounds - one.round) * questions.num_classes < MOST_BALANCES
    right, known = questions.right_by_class()
    facts |= {name: int(stats.get(name, 0)) for name in ("kept", "copies", "overrides", "rejected")}
    facts["unmatched_corrections"] = int(stats.get("forgotten_overrides", 0))
    facts["balance"] = (
        ()
        if not detailed
        else tuple(
            class_balance(line, count, int(right[label]), int(known[label]))
            for label, (line, count) in enumerate(zip(stats["classes"], labeled, strict=True))
        )
    )
    if known.any():
        facts |= {"right": int(right.sum()), "known": int(known.sum())}
        facts["label_confusion"] = questions.label_confusion()
    return facts


def class_balance(line: Mapping[str, Any], labeled: int, right: int, known: int) -> ClassBalance:
    """Combines a row of stats.json with the other numbers of its class."""
    return ClassBalance(
        labeled=labeled,
        right=right if known else None,
        known=known or None,
        **{  # type: ignore[arg-type]
            name: line.get(name)
            for name in (
                "candidates", "threshold", "kept", "copies", "overrides", "mean_confidence", "estimated_precision",
                "precision_bound",
            )
        },
    )  # fmt: skip


def thresholds_of(one: RoundArtifacts) -> list[float | None]:
    """Returns the threshold of every class."""
    return [] if one.selection is None else [line["threshold"] for line in read_json(one.selection, STATS)["classes"]]


def read_json(artifact: Artifact, name: str) -> dict[str, Any]:
    """Reads one of an artifact's JSON files."""
    return json.loads((tables_folder(artifact) / name).read_text())
