"""The history of one image: which teacher called it what in which round, and which student saw it how often."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from selftrain.ssl_tasks.errors import NotFound
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.runs import Run
from selftrain.ssl_tasks.tracking.lineage.graph import visible


@dataclass(frozen=True)
class SampleRound:
    """What one round made of an image. `label` is the class's name; `error` says why it could not be read."""

    round: int
    teacher: str  # digest
    predictions: str
    label: str | None
    confidence: float | None
    margin: float | None
    error: str | None
    selected: bool
    chosen_label: str | None  # differs from `label` where a person has corrected it
    source: str | None  # model or override
    copies: int
    selection: str | None
    student: str | None  # digest; None where none has been trained yet


@dataclass(frozen=True)
class SampleLineage:
    """An image: where it is, what is known of it, and its rounds."""

    sample_id: str
    split: str
    content: str
    uri: str
    label: str | None
    rounds: tuple[SampleRound, ...]


def sample_lineage(run: Run, sample_id: str) -> SampleLineage:
    """The history of an image in a run; NotFound where the data set has no such image."""
    dataset = run.dataset
    if dataset is None:
        raise NotFound(f"run {run.id} has no data set yet")
    row = _row(dataset.file("manifest.parquet"), sample_id, ["split", "content", "uri", "label"])
    if row is None:
        raise NotFound(f"no sample '{sample_id}' in the data set of run {run.id}; `selftrain labels` lists sample ids")
    classes = json.loads(dataset.file("info.json").read_text())["classes"]
    known = run.rounds()
    teachers = [one.model for one in known]
    rounds = [
        _round(one.round, sample_id, classes, teachers[number - 1], one.predictions, one.selection, one.model)
        for number, one in enumerate(known)
        if one.predictions is not None
    ]
    label = _name(classes, row["label"])
    return SampleLineage(sample_id, row["split"], row["content"], row["uri"], label, tuple(rounds))


def sample_tree(lineage: SampleLineage) -> str:
    """Lines for a terminal."""
    known = f" · {visible(lineage.label)}" if lineage.label else ""
    lines = [f"{visible(lineage.sample_id)}  {lineage.split}{known}  {lineage.content[:12]}"]
    for number, one in enumerate(lineage.rounds, 1):
        corner, bar = ("└─", "   ") if number == len(lineage.rounds) else ("├─", "│  ")
        called = f"unreadable: {visible(one.error)}" if one.error else f"{visible(str(one.label))} {one.confidence:.3f}"
        lines.append(f"{corner} round {one.round}: teacher {one.teacher[:12]} says {called}")
        if one.selected:
            other = f" as {visible(str(one.chosen_label))} ({one.source})" if one.chosen_label != one.label else ""
            student = f"student {one.student[:12]} sees" if one.student else "its student will see"
            lines.append(f"{bar}selected{other}; {student} {one.copies} {'copy' if one.copies == 1 else 'copies'}")
        else:
            lines.append(f"{bar}not selected")
    return "\n".join(lines)


def _round(
    number: int,
    sample_id: str,
    classes: list[str],
    teacher: Artifact | None,
    predictions: Artifact,
    selection: Artifact | None,
    student: Artifact | None,
) -> SampleRound:
    predicted = _predicted(predictions, sample_id)
    chosen = None
    if selection is not None:
        columns = ["label", "copies", "source"]
        chosen = _row(selection.file("selection.parquet"), sample_id, columns)
    confidence, margin = predicted.get("confidence"), predicted.get("margin")
    return SampleRound(
        round=number,
        teacher=teacher.digest if teacher is not None else predictions.manifest["inputs"]["model"]["digest"],
        predictions=predictions.digest,
        label=_name(classes, predicted.get("label")),
        confidence=None if pd.isna(confidence) else float(confidence),
        margin=None if pd.isna(margin) else float(margin),
        error=None if pd.isna(predicted.get("error")) else str(predicted["error"]),
        selected=chosen is not None,
        chosen_label=_name(classes, chosen["label"]) if chosen is not None else None,
        source=str(chosen["source"]) if chosen is not None else None,
        copies=int(chosen["copies"]) if chosen is not None else 0,
        selection=selection.digest if selection is not None else None,
        student=student.digest if student is not None else None,
    )


def _predicted(predictions: Artifact, sample_id: str) -> dict[str, Any]:
    for path in sorted(predictions.file("shards").glob("*.parquet")):
        row = _row(path, sample_id, ["label", "confidence", "margin", "error"])
        if row is not None:
            return row
    return {}


def _row(path: Path, sample_id: str, columns: list[str]) -> dict[str, Any] | None:
    table = pd.read_parquet(path, columns=["sample_id", *columns], filters=[("sample_id", "==", sample_id)])
    return None if table.empty else {name: table[name].iloc[0] for name in columns}


def _name(classes: list[str], label: Any) -> str | None:
    return None if label is None or pd.isna(label) or int(label) < 0 else str(classes[int(label)])
