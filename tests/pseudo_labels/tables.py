"""Small tables written by hand: a data set's manifest and a teacher's predictions, as the stages would leave them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selftrain.ssl_tasks.execution.stage import StageContext
from selftrain.ssl_tasks.pseudo_labels import schema
from selftrain.ssl_tasks.pseudo_labels.select import select
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

PARTS = {"labeled": "l", "unlabeled": "u", "validation": "v", "test": "t"}


@dataclass(frozen=True)
class Row:
    """One unlabelled image and what the teacher says of it."""

    sample_id: str
    label: int | None
    confidence: float = 1.0
    margin: float = 1.0
    view_agreement: float = 1.0
    feature_distance: float | None = None
    content: str | None = None  # default: its own
    error: str | None = None


@dataclass(frozen=True)
class Held:
    """One validation image: its truth, and what the teacher says."""

    truth: int
    label: int
    confidence: float
    margin: float = 1.0
    fitted: bool = False


@dataclass(frozen=True)
class Tables:
    """A data set and its predictions, in a folder."""

    folder: Path
    rows: Sequence[Row]
    classes: int = 3
    labeled: Sequence[tuple[str, int, str]] = ()  # id, label, content
    held_out: Sequence[tuple[str, str, str]] = ()  # id, split, content
    validation: Sequence[Held] = ()
    shards: int = 1
    top_k: int | None = None
    names: Sequence[str] = ()  # of the classes; default class-0, class-1, …
    parts: dict[str, str] = field(default_factory=lambda: dict(PARTS))

    def write(self) -> tuple[Artifact, Artifact]:
        """The two artifacts."""
        return self._dataset(), self._predictions()

    def _dataset(self) -> Artifact:
        folder = self.folder / "dataset"
        folder.mkdir(parents=True, exist_ok=True)
        lines: list[tuple[str, int, str, str, str | None]] = [
            (sample, label, "labeled", content, None) for sample, label, content in self.labeled
        ]
        lines += [(sample, 0, split, content, None) for sample, split, content in self.held_out]
        lines += [(row.sample_id, -1, "unlabeled", row.content or f"c-{row.sample_id}", row.error) for row in self.rows]
        columns = dict(zip(("sample_id", "label", "split", "content", "error"), zip(*lines, strict=True), strict=True))
        manifest = pa.table(
            {name: pa.array(values, pa.int32() if name == "label" else pa.string()) for name, values in columns.items()}
        )
        manifest = manifest.append_column("uri", manifest["sample_id"])
        pq.write_table(manifest, folder / "manifest.parquet")
        truth = {"sample_id": [row.sample_id for row in self.rows], "label": [row.label or 0 for row in self.rows]}
        pq.write_table(
            pa.table(truth, pa.schema({"sample_id": pa.string(), "label": pa.int32()})), folder / "truth.parquet"
        )
        return Artifact(folder, {"stage": "dataset", "digest": "d", "parts": self.parts})

    def _predictions(self) -> Artifact:
        folder = self.folder / f"predictions-{self.shards}"
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        readable = [row for row in self.rows if row.error is None]
        size = -(-len(readable) // self.shards)
        shards: list[dict[str, Any]] = []
        for number in range(self.shards):
            self._shard(folder, shards, readable[number * size : (number + 1) * size], number * size)
        self._shard(folder, shards, [row for row in self.rows if row.error is not None], None)
        description = {
            "schema": schema.SCHEMA_VERSION,
            "classes": list(self.names) or [f"class-{number}" for number in range(self.classes)],
            "stored_classes": self.top_k or self.classes,
            "dataset": "d",
            "parts": PARTS,
            "teachers": ["teacher"],
            "temperature": 1.0,
            "shards": shards,
        }
        (folder / schema.DESCRIPTION).write_text(json.dumps(description))
        self._validation(folder)
        return Artifact(folder, {"stage": "predict", "digest": f"p{self.shards}"})

    def _shard(self, folder: Path, shards: list[dict[str, Any]], rows: Sequence[Row], first: int | None) -> None:
        if not rows:
            return
        name = f"part-{len(shards):05d}.parquet"
        pq.write_table(self._table(rows), folder / "shards" / name)
        shards.append({"file": name, "rows": len(rows), "first": first})

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        stored = self.top_k or self.classes
        columns: dict[str, list[Any]] = {
            name: [getattr(row, name) for row in rows]
            for name in ("sample_id", "label", "confidence", "margin", "view_agreement", "feature_distance", "error")
        }
        columns["entropy"] = [0.5] * len(rows)
        for name in ("confidence", "margin", "view_agreement", "entropy"):
            columns[name] = [None if row.error else value for row, value in zip(rows, columns[name], strict=True)]
        orders = [sorted(range(self.classes), key=lambda c: c != row.label)[:stored] for row in rows]
        columns["classes"] = orders
        columns["probs"] = [
            [
                row.confidence if c == row.label else (1 - row.confidence) / max(1, self.classes - 1)
                for c in (order if self.top_k else range(self.classes))
            ]
            for row, order in zip(rows, orders, strict=True)
        ]
        layout = schema.shard_schema(self.top_k is not None)
        return pa.table([pa.array(columns[item.name], item.type) for item in layout], layout)

    def _validation(self, folder: Path) -> None:
        rows = [
            Row(f"val-{number:05d}", one.label, one.confidence, one.margin)
            for number, one in enumerate(self.validation)
        ]
        table = self._table(rows)
        table = table.append_column("truth", pa.array([one.truth for one in self.validation], pa.int32()))
        table = table.append_column("fitted", pa.array([one.fitted for one in self.validation], pa.bool_()))
        pq.write_table(table, folder / schema.VALIDATION)


def run_select(
    tables: Tables, output: Path, settings: SelectSettings, previous: Artifact | None = None, threads: int = 1
) -> Artifact:
    """The stage's body, and what it wrote."""
    dataset, predictions = tables.write()
    inputs = {"dataset": dataset, "predictions": predictions}
    if previous is not None:
        inputs["previous_selection"] = previous
    output.mkdir(parents=True)
    context = StageContext(
        section=settings,
        inputs=inputs,
        output=output,
        scratch=tables.folder / "scratch",
        cache=tables.folder / "cache",
        runtime=RuntimeSettings(threads=threads, memory_gb=0.5),
    )
    return Artifact(output, {"stage": "select", "digest": "s", "summary": select(context).summary})


def selected(artifact: Artifact) -> list[dict[str, Any]]:
    """The rows of a selection."""
    return pq.read_table(artifact.file("selection.parquet")).to_pylist()


def stats(artifact: Artifact) -> dict[str, Any]:
    """stats.json."""
    return json.loads(artifact.file("stats.json").read_text())
