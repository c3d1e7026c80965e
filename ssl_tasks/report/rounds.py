"""Collects the page of one round from the JSON files and tables of its artifacts."""

import json
from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from selftrain.ssl_tasks.pseudo_labels.schema import STATS
from selftrain.ssl_tasks.pseudo_labels.views import RoundTables
from selftrain.ssl_tasks.report.data import ClassBalance, Confusion, Reliability, RoundPage, Score
from selftrain.ssl_tasks.report.questions import Questions, looked, sparse_confusion
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.runs import RoundArtifacts, tables_folder

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
