"""Shows pseudo-labels: per class, by confidence, their changes, and the review queue."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from selftrain.ssl_tasks.errors import NotFound, nearest
from selftrain.ssl_tasks.pseudo_labels.engine import literal
from selftrain.ssl_tasks.pseudo_labels.schema import STATS
from selftrain.ssl_tasks.pseudo_labels.views import RoundTables, RunTables, open_tables

# `true_precision` needs the ground truth; corrections do not count.
TRUE_PRECISION = """
    SELECT s.label, avg((s.label = m.truth)::INTEGER) AS true_precision
    FROM selection s JOIN manifest m USING (sample_id)
    WHERE s.round = {round} AND s.source = 'model' AND m.truth IS NOT NULL GROUP BY s.label
"""
FLIPS = """
    SELECT before.class AS previous_class, now.class AS class, count(*) AS images,
        avg(now.confidence) AS mean_confidence, count(s.sample_id) AS kept
    FROM predictions now JOIN predictions before ON before.round = {previous} AND before.sample_id = now.sample_id
    LEFT JOIN selection s ON s.round = now.round AND s.sample_id = now.sample_id
    WHERE now.round = {round} AND now.label <> before.label
    GROUP BY ALL ORDER BY images DESC, previous_class, class
"""
LABELS = """
    SELECT p.round, p.sample_id, p.position, coalesce(s.class, p.class) AS class, p.class AS predicted,
        before.class AS previous, p.confidence, p.margin, p.view_agreement, p.feature_distance,
        s.sample_id IS NOT NULL AS selected, coalesce(s.copies, 0) AS copies, s.source, m.truth, m.uri, p.error
    FROM predictions p JOIN manifest m USING (sample_id)
    LEFT JOIN selection s ON s.round = p.round AND s.sample_id = p.sample_id
    LEFT JOIN predictions before ON before.round = {previous} AND before.sample_id = p.sample_id
    WHERE p.round = {round}
"""
# Picks the rows from as few tables as possible; other columns are read only for these rows.
PICKED = """
    SELECT p.sample_id FROM predictions p {joins} WHERE p.round = {round} AND {where} ORDER BY {order} LIMIT {limit}
"""
JOINS = {
    "s": "LEFT JOIN selection s ON s.round = p.round AND s.sample_id = p.sample_id",
    "before": "LEFT JOIN predictions before ON before.round = p.round - 1 AND before.sample_id = p.sample_id",
}
DIFFERENCES = """
    SELECT one.sample_id, one.class AS "class {first}", one.confidence AS "confidence {first}",
        one.selected AS "selected {first}", one.copies AS "copies {first}", two.class AS "class {second}",
        two.confidence AS "confidence {second}", two.selected AS "selected {second}", two.copies AS "copies {second}"
    FROM ({one}) one JOIN ({two}) two USING (sample_id)
    WHERE one.class IS DISTINCT FROM two.class OR one.selected <> two.selected
    ORDER BY sample_id
"""
# Each reason adds at most 1; `far` is the rank of the sample's distance within its class, counted from the median up.
QUEUE = """
    SELECT queue.*, m.uri FROM (SELECT *, flipped + disagreement + near_threshold + far AS score FROM (
        SELECT p.sample_id, p.position, p.class, before.class AS previous, p.confidence,
            nullif(t.threshold, {never}) AS threshold,
            CASE WHEN p.label <> before.label THEN greatest(p.confidence, before.confidence) ELSE 0 END AS flipped,
            (1 - p.view_agreement)::DOUBLE AS disagreement,
            greatest(0, 1 - abs(p.confidence - t.threshold) / {near}) AS near_threshold,
            CASE WHEN p.feature_distance IS NULL OR p.confidence < t.threshold THEN 0
                ELSE p.confidence * greatest(0, 2 * percent_rank() OVER by_distance - 1) END AS far
        FROM predictions p JOIN thresholds t ON t.label = p.label
        LEFT JOIN predictions before ON before.round = {previous} AND before.sample_id = p.sample_id
        WHERE p.round = {round}
            AND p.sample_id NOT IN (SELECT sample_id FROM manifest WHERE split <> 'unlabeled')
            AND NOT EXISTS (
                FROM selection s WHERE s.round = p.round AND s.sample_id = p.sample_id AND s.source = 'override'
            )
        WINDOW by_distance AS (PARTITION BY p.label ORDER BY p.feature_distance, p.sample_id)
    ) ORDER BY score DESC, sample_id LIMIT {limit}) queue JOIN manifest m USING (sample_id)
    ORDER BY score DESC, sample_id
"""
SUMMARY = [
    *("label", "name", "candidates", "threshold", "kept", "copies", "overrides", "mean_confidence"),
    *("estimated_precision", "precision_bound", "held_out", "promise"),
]
REASONS = {
    "flipped": "its class changed since the previous round",
    "disagreement": "views or teachers disagree",
    "near_threshold": "near the threshold",
    "far": "confident, but far from its class",
}
NEAR = 0.05  # in confidence, around the threshold
NEVER = 2.0  # a threshold that no confidence reaches
SORTS = {"confidence": "confidence", "margin": "margin", "agreement": "view_agreement", "distance": "feature_distance"}


def class_summary(tables: RunTables, round: int | None = None) -> pd.DataFrame:
    """Returns one row per class with its counts, threshold and pseudo-label accuracy.

    Columns: label, name, candidates, threshold, kept, copies, overrides, mean_confidence, estimated_precision (on
    held-out images), precision_bound, held_out, promise, true_precision (if the ground truth is known).
    """
    chosen = round_of(tables, round)
    summary = pd.DataFrame(stats_of(chosen))[SUMMARY]
    with open_tables(tables) as connection:
        known = connection.execute(TRUE_PRECISION.format(round=chosen.round)).df()
    return summary.merge(known, on="label", how="left").sort_values("label", ignore_index=True)


def flips(tables: RunTables, round: int | None = None) -> pd.DataFrame:
    """Returns the changes of class since the previous round: previous_class, class, images, mean_confidence, kept."""
    chosen = round_of(tables, round).round
    with open_tables(tables) as connection:
        return connection.execute(FLIPS.format(round=chosen, previous=chosen - 1)).df()


def review_queue(tables: RunTables, round: int | None = None, limit: int = 100) -> pd.DataFrame:
    """Returns the samples to review first, with a score of 0 to 1 per reason and `reasons` in words."""
    chosen = round_of(tables, round)
    thresholds = pd.DataFrame(stats_of(chosen))[["label", "threshold"]].astype({"threshold": float}).fillna(NEVER)
    with open_tables(tables) as connection:
        connection.register("stated", thresholds)
        connection.execute("CREATE TEMP TABLE thresholds AS FROM stated")
        query = QUEUE.format(round=chosen.round, previous=chosen.round - 1, near=NEAR, never=NEVER, limit=int(limit))
        queue = connection.execute(query).df()
    queue["reasons"] = [
        "; ".join(text for name, text in REASONS.items() if row[name] > 0) for _, row in queue.iterrows()
    ]
    return queue


@dataclass(frozen=True)
class LabelFilter:
    """A filter and an order of pseudo-labels."""

    round: int | None = None  # default: the last round
    class_name: str | None = None
    selected: bool | None = None
    min_confidence: float | None = None
    flipped: bool | None = None  # compared with the previous round
    source: Literal["model", "override"] | None = None
    sort: str = "-confidence"  # a column; a minus before it sorts the largest first
    limit: int = 50

    def conditions(self, classes: Sequence[str]) -> dict[str, str]:
        """Returns SQL conditions over predictions p, by the table of JOINS that they also need."""
        changed = "coalesce(p.label <> before.label, false)"
        label = classes.index(self.class_name) if self.class_name is not None else -1
        found = {
            "class_name": ("s", f"coalesce(s.label, p.label) = {label}"),
            "selected": ("s", f"s.sample_id IS {'NOT' if self.selected else ''} NULL"),
            "min_confidence": ("", f"p.confidence >= {float(self.min_confidence or 0)!r}::FLOAT"),
            "flipped": ("before", changed if self.flipped else f"NOT {changed}"),
            "source": ("s", f"s.source = {literal(self.source or '')}"),
        }
        return {sql: table for name, (table, sql) in found.items() if getattr(self, name) is not None}

    def order(self) -> str:
        """Returns the SQL order over predictions p; ties are broken by id."""
        name = self.sort.removeprefix("-")
        if name not in SORTS:
            raise NotFound(f"labels cannot be sorted by '{name}'." + nearest(name, SORTS))
        return f"p.{SORTS[name]} {'DESC' if self.sort.startswith('-') else 'ASC'} NULLS LAST, p.sample_id"


def labels_table(tables: RunTables, wanted: LabelFilter | None = None) -> pd.DataFrame:
    """Returns one row per pseudo-label.

    Columns: round, sample_id, position, class (after a correction, if any), predicted, previous, confidence, margin,
    view_agreement, feature_distance, selected, copies, source, truth, uri, error.
    """
    wanted = wanted or LabelFilter()
    if wanted.class_name is not None and wanted.class_name not in tables.classes:
        raise NotFound(f"no class '{wanted.class_name}'." + nearest(wanted.class_name, tables.classes))
    chosen = round_of(tables, wanted.round).round
    conditions, order = wanted.conditions(tables.classes), wanted.order()
    picked = PICKED.format(
        joins=" ".join(JOINS[table] for table in dict.fromkeys(conditions.values()) if table),
        round=chosen,
        where=" AND ".join(conditions) or "true",
        order=order,
        limit=int(wanted.limit),
    )
    labels = LABELS.format(round=chosen, previous=chosen - 1)
    with open_tables(tables) as connection:
        return connection.execute(f"{labels} AND p.sample_id IN ({picked}) ORDER BY {order}").df()


def round_differences(tables: RunTables, first: int, second: int) -> pd.DataFrame:
    """Returns the images whose class, or whose acceptance by the selection, differs between two rounds."""
    numbers = [round_of(tables, number).round for number in (first, second)]
    one, two = (LABELS.format(round=number, previous=number - 1) for number in numbers)
    with open_tables(tables) as connection:
        return connection.execute(DIFFERENCES.format(first=first, second=second, one=one, two=two)).df()


def round_of(tables: RunTables, number: int | None) -> RoundTables:
    """Returns a round by its number; the last round by default."""
    known = {one.round: one for one in tables.rounds}
    if not known:
        raise NotFound("this run has no pseudo-labels yet; expected a round with predictions. See: selftrain status")
    if number is not None and number not in known:
        raise NotFound(f"no round {number} with pseudo-labels; expected one of {', '.join(map(str, sorted(known)))}")
    return known[max(known) if number is None else number]


def stats_of(one: RoundTables) -> list[dict[str, object]]:
    """Returns the per-class statistics of a round's selection."""
    if one.selection is None:
        raise NotFound(f"round {one.round} has no selection yet. See: selftrain status")
    return json.loads((one.selection / STATS).read_text())["classes"]
