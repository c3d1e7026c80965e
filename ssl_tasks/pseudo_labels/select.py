"""Runs the stage `select`: decides which pseudo-labels are accepted and how many copies of each, and records why.

Training reads the rows with dense, sharpened probabilities, or with a label only.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.pseudo_labels import candidates, thresholds
from selftrain.ssl_tasks.pseudo_labels.candidates import Histogram
from selftrain.ssl_tasks.pseudo_labels.corrections import Misfit, count_of, define_overrides, sentences_of
from selftrain.ssl_tasks.pseudo_labels.engine import (
    copy_to_parquet,
    fetch,
    fetch_number,
    open_duckdb,
    read_parquet,
)
from selftrain.ssl_tasks.pseudo_labels.promise import HeldOut
from selftrain.ssl_tasks.pseudo_labels.schema import OVERRIDES, SELECTION, STATS, VALIDATION, Predictions
from selftrain.ssl_tasks.pseudo_labels.thresholds import (
    Chosen,
    Counts,
    Plan,
    bernoulli_plan,
    exact_plan,
    wanted_totals,
)
from selftrain.ssl_tasks.settings.pseudo_labels import CorrectedSettings, SelectSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, write_atomically

COLUMNS = (
    "sample_id, {position} AS position, label::INTEGER AS label, confidence, rank_in_class::INTEGER AS rank_in_class, "
    "copies::INTEGER AS copies, source"
)
# Nothing here fails or is null. But DuckDB writes a column as `required` if it happens to know that it has no nulls,
# which depends on how the table is cut into shards. With TRY it never knows, so the file is always the same.
FLAT = ", ".join(
    f"TRY({column}) AS {column}"
    for column in ("sample_id", "position", "label", "confidence", "rank_in_class", "copies", "source")
)
# A lambda's expression is computed for every element, so values that are the same for a whole row come before it.
SOFT = """
    SELECT * EXCLUDE (powers, total), list_transform(powers, lambda power: (power / total)::FLOAT) AS probs
    FROM (
        SELECT *, list_sum(powers) AS total
        FROM (
            SELECT * EXCLUDE (dense), CASE source
                WHEN 'override' THEN list_transform(range({classes}), lambda number: (number = label)::INTEGER::DOUBLE)
                ELSE list_transform(dense, lambda prob: pow(prob, {exponent!r}))
            END AS powers
            FROM (
                SELECT {columns}, {dense} AS dense
                FROM chosen JOIN (SELECT file_index, file_row_number, {stored} FROM {table})
                USING (file_index, file_row_number)
            )
        )
    )
"""
# The probability that the top k leave is spread over the other classes.
SPARSE = (
    "list_transform(range({classes}), lambda number: coalesce("
    "probs[list_position(classes, number::SMALLINT)], rest)::DOUBLE)"
)
STORED_OF_SPARSE = "probs, classes, greatest(0, 1 - list_sum(probs)) / {others} AS rest"


def output_rows(predictions: Predictions, settings: SelectSettings) -> str:
    """Returns the SQL query over the table `chosen` for the rows of selection.parquet, unordered."""
    columns = COLUMNS.format(position=predictions.position())
    if not settings.soft:
        return f"SELECT {FLAT} FROM (SELECT {columns} FROM chosen)"
    classes = len(predictions.classes)
    others = classes - predictions.description["stored_classes"]
    soft = SOFT.format(
        columns=columns,
        classes=classes,
        exponent=1 / settings.sharpen,
        table=predictions.table(),
        stored=STORED_OF_SPARSE.format(others=others) if predictions.sparse else "probs",
        dense=SPARSE.format(classes=classes) if predictions.sparse else "probs::DOUBLE[]",
    )
    return f"SELECT {FLAT}, probs FROM ({soft})"


# Noisy Student's filter uses bins of .01.
OFFICIAL_BINS = """
    SELECT label, min(confidence) AS edge, count(*) AS offered, count(*) AS count FROM ({passing})
    GROUP BY label, floor(confidence::DOUBLE * 100) ORDER BY label, edge DESC
"""

# Rows that pass and are among the class's first, after people's corrections. `edge` only saves sorting.
RANKED = """
    CREATE TEMP TABLE ranked AS
    SELECT sample_id, label, confidence, file_index, file_row_number, 'model' AS source,
        people + row_number() OVER (PARTITION BY label ORDER BY confidence DESC, sample_id) AS rank_in_class
    FROM (FROM predictions JOIN plan USING (label) WHERE confidence >= edge AND {rules})
    ANTI JOIN barred USING (sample_id)
    QUALIFY rank_in_class <= people + take
    UNION ALL
    SELECT sample_id, o.label, 1::FLOAT, file_index, file_row_number, 'override',
        row_number() OVER (PARTITION BY o.label ORDER BY sample_id)
    FROM overrides o JOIN predictions USING (sample_id) WHERE o.label IS NOT NULL
"""
# The first `total % unique` rows of a class get one copy more than the others.
EXACT_COPIES = "total // (people + take) + (rank_in_class <= total % (people + take))::BIGINT"
# A keyed hash of the id instead of a random generator: seeded, and the same however the table is cut into shards.
BERNOULLI_COPIES = (
    "floor(ratio)::BIGINT + (md5_number_upper('{seed}:' || sample_id) / 18446744073709551616.0 < ratio % 1)::BIGINT"
)
CHOSEN = """
    CREATE TEMP TABLE chosen AS
    SELECT * EXCLUDE (wanted), least({most}, greatest(wanted, (source = 'override')::BIGINT)) AS copies
    FROM (SELECT ranked.*, {copies} AS wanted FROM ranked JOIN plan USING (label))
    WHERE copies > 0
"""
# Confidences are summed as integers: a sum of floats would depend on the number of threads.
KEPT = """
    SELECT label, count(*) AS kept, sum(copies)::BIGINT AS copies, count(*) FILTER (source = 'override') AS overrides,
        sum(round(confidence::DOUBLE * 16777216)::HUGEINT) FILTER (source = 'model')::DOUBLE
        / 16777216 / nullif(count(*) FILTER (source = 'model'), 0) AS mean_confidence
    FROM chosen GROUP BY label ORDER BY label
"""


def select(context: StageContext) -> StageResult:
    """Runs the stage's body: dataset, predictions and, in later rounds, previous_selection → the selection."""
    settings = context.section
    assert isinstance(settings, SelectSettings)
    predictions = Predictions.open(context.inputs["predictions"].path)
    check_same_images(predictions, context.inputs["dataset"])
    shutil.rmtree(context.scratch / "duckdb", ignore_errors=True)  # spilled by a killed attempt
    with open_duckdb(context.scratch / "duckdb", context.runtime.memory_gb, context.runtime.threads) as connection:
        stats, unmatched = Selecting(context, settings, predictions, connection).run()
    write_atomically(context.output / STATS, json.dumps(stats, indent=1, sort_keys=True) + "\n")
    summary = {name: value for name, value in stats.items() if name != "classes"}
    return StageResult(summary=summary | ({"unmatched_corrections": unmatched} if unmatched else {}))


def check_same_images(predictions: Predictions, dataset: Artifact) -> None:
    """Raises DataError unless the predictions are about the unlabelled images of this data set."""
    if predictions.description["parts"]["unlabeled"] != dataset.parts["unlabeled"]:
        raise DataError(
            f"the predictions {predictions.folder} were made for other unlabelled images than those of "
            f"{dataset.path}; predict again"
        )


@dataclass(frozen=True)
class Selecting:
    """Makes one selection in steps that share a database connection."""

    context: StageContext
    settings: SelectSettings
    predictions: Predictions
    connection: duckdb.DuckDBPyConnection

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Makes the selection; returns the contents of stats.json, and the reasons why corrections are not used."""
        unmatched = self.define_tables()
        fixed = self.settings.threshold or 0.0
        histogram = candidates.measure(self.connection, self.num_classes, fixed, self.settings)
        held_out = thresholds.read_held_out(self.connection, self.predictions.folder / VALIDATION, self.settings)
        chosen = thresholds.choose_thresholds(self.connection, self.settings, histogram, held_out)
        plan = self.plan(histogram, chosen.thresholds)
        self.choose(plan, histogram, chosen.thresholds)
        self.write()
        per_class = self.per_class(chosen, histogram, held_out)
        stats = {**self.totals(histogram), "forgotten_overrides": count_of(unmatched), "classes": per_class}
        return stats, sentences_of(unmatched)

    @property
    def num_classes(self) -> int:
        return len(self.predictions.classes)

    @property
    def manifest(self) -> Path:
        return self.context.inputs["dataset"].file("manifest.parquet")

    def define_tables(self) -> list[Misfit]:
        """Defines the candidates and the corrections; returns the corrections that no longer fit the data."""
        candidates.define_excluded(self.connection, self.manifest)
        previous = self.context.inputs.get("previous_selection")
        carried = previous.file(OVERRIDES) if previous and previous.file(OVERRIDES).exists() else None
        corrections = self.settings.corrections if isinstance(self.settings, CorrectedSettings) else None
        unmatched = define_overrides(
            self.connection, self.settings.overrides, carried, self.manifest, self.predictions.classes, corrections
        )
        candidates.define_candidates(self.connection, self.predictions, self.settings)
        return unmatched

    def plan(self, histogram: Histogram, least: NDArray[np.float32]) -> Plan:
        """Plans how many samples of each class are accepted, from the number of candidates."""
        candidates.per_class_table(self.connection, "limits", least=least)
        passing = "SELECT label, confidence FROM eligible JOIN limits USING (label) WHERE confidence >= least"
        if (
            self.settings.adaptive or self.settings.quantile is not None
        ):  # then thresholds are not edges of the histogram
            available = candidates.count_per_class(self.connection, passing, self.num_classes)
        else:
            available = histogram.passing(least)
        if self.settings.top_k is not None:
            available = np.minimum(available, self.settings.top_k)
        people = self.count("SELECT label FROM overrides WHERE label IS NOT NULL")
        total = wanted_totals(self.settings, available + people, self.labeled())
        if self.settings.scheme == "exact":
            return exact_plan(total, available, people)
        bins = candidates.histogram_of(fetch(self.connection, OFFICIAL_BINS.format(passing=passing)), self.num_classes)
        return bernoulli_plan(total, available, people, bins.reached(np.clip(total - people, 0, None)))

    def labeled(self) -> Counts:
        """Returns the number of labelled images per class."""
        return self.count(f"SELECT label FROM {read_parquet(self.manifest)} WHERE split = 'labeled' AND label >= 0")

    def count(self, query: str) -> Counts:
        return candidates.count_per_class(self.connection, query, self.num_classes)

    def choose(self, plan: Plan, histogram: Histogram, least: NDArray[np.float32]) -> None:
        """Creates the table `chosen`: the selection, with the place of each row's probabilities."""
        candidates.per_class_table(
            self.connection,
            "plan",
            edge=np.maximum(least, histogram.cut_at(plan.take)),
            people=plan.people,
            take=plan.take,
            total=plan.total,
            ratio=plan.ratio,
        )
        self.connection.execute(RANKED.format(rules=candidates.sample_rules(self.settings)))
        bernoulli = BERNOULLI_COPIES.format(seed=self.settings.seed)
        copies = EXACT_COPIES if self.settings.scheme == "exact" else bernoulli
        self.connection.execute(CHOSEN.format(copies=copies, most=self.settings.max_copies or 2**31 - 1))

    def write(self) -> None:
        """Writes selection.parquet, and overrides.parquet if there are corrections."""
        rows = output_rows(self.predictions, self.settings)
        copy_to_parquet(self.connection, f"{rows} ORDER BY sample_id", self.context.output / SELECTION)
        if self.number("SELECT count(*) FROM overrides"):
            query = "SELECT sample_id, label, origin FROM overrides ORDER BY sample_id"
            copy_to_parquet(self.connection, query, self.context.output / OVERRIDES)

    def number(self, query: str) -> int:
        return fetch_number(self.connection, query)

    def totals(self, histogram: Histogram) -> dict[str, Any]:
        """Returns the totals of the selection."""
        return {
            "candidates": int(histogram.offered.sum()),
            "kept": self.number("SELECT count(*) FROM chosen"),
            "copies": self.number("SELECT coalesce(sum(copies), 0)::BIGINT FROM chosen"),
            "overrides": self.number("SELECT count(*) FROM overrides WHERE label IS NOT NULL"),
            "rejected": self.number("SELECT count(*) FROM overrides WHERE label IS NULL"),
            "excluded": self.number("SELECT count(*) FROM barred_rows JOIN excluded USING (sample_id)"),
        }

    def per_class(self, chosen: Chosen, histogram: Histogram, held_out: HeldOut) -> list[dict[str, Any]]:
        """Returns the per-class rows of stats.json."""
        rows = {row[0]: row[1:] for row in self.connection.execute(KEPT).fetchall()}
        estimates = thresholds.estimated_precision(held_out, chosen.thresholds, self.settings.precision_confidence)
        lines = []
        for label, name in enumerate(self.predictions.classes):
            kept, copies, corrected, mean = rows.get(label, (0, 0, 0, None))
            estimate, bound, seen = estimates[label]
            least = float(str(chosen.thresholds[label]))  # 0.3, not 0.30000001192
            lines.append(
                {
                    "label": label,
                    "name": name,
                    "candidates": int(histogram.offered[label]),
                    "threshold": least if np.isfinite(least) else None,  # null: no confidence is enough
                    "kept": kept,
                    "copies": copies,
                    "overrides": corrected,
                    "mean_confidence": mean,
                    "estimated_precision": estimate,
                    "precision_bound": bound,
                    "held_out": seen,
                    "promise": None if chosen.promise is None else chosen.promise.scope[label],
                }
            )
        return lines
