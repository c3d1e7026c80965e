"""Measures time, memory and size of the report for many predictions and classes.

    python benchmarks/report_size.py [--quick]

The data set (shapes drawn from their number), the selections and the gates are the stages' own work; predictions and
evaluations are drawn at random around the truth, so that no network has to be trained. The report is then written by a
fresh process, whose peak memory is counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import publish
from selftrain.flows.rounds.stages import dataset_request, gate_request, select_request
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.sources import fingerprint
from selftrain.ssl_tasks.evaluation.metrics import confusion_matrix, measure
from selftrain.ssl_tasks.execution.stage import Request, StageContext, StageResult, execute
from selftrain.ssl_tasks.pseudo_labels import schema
from selftrain.ssl_tasks.pseudo_labels.schema import held_out_table, parquet_bytes, prediction_table
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings
from selftrain.ssl_tasks.settings.run_config import EvaluateSettings, LearnerSettings, RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.runs import Run, StageRecord

SHARD = DRAWN = 65_536
SECONDS, GIGABYTES, MEGABYTES = 60.0, 2.0, 15.0


class Teacher:
    """Rows of probabilities that are right about four times out of five, drawn for class 0 and turned to the truth.

    A few are drawn and used again in another order for every shard: what a row looks like is only turned by its truth,
    so that its confidence, margin and entropy are known already.
    """

    def __init__(self, num_classes: int, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        scores = self.generator.normal(size=(DRAWN, num_classes)).astype(np.float32)
        scores[:, 0] += self.generator.normal(5.0, 2.2, DRAWN).astype(np.float32)
        scores = np.exp(1.6 * scores)
        self.probs = scores / scores.sum(axis=1, keepdims=True)
        second, first = np.partition(self.probs, num_classes - 2, axis=1)[:, -2:].T
        self.label = self.probs.argmax(axis=1)
        self.facts = {
            "confidence": first,
            "margin": first - second,
            "entropy": -(self.probs * np.log(self.probs + 1e-12)).sum(axis=1),
            "view_agreement": np.round(first * 4) / 4,
            "feature_distance": 1 - first,
        }

    def columns(self, truth: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The columns of a shard, of DRAWN rows at most."""
        rows, num_classes = self.generator.permutation(DRAWN)[: len(truth)], self.probs.shape[1]
        turned = (np.arange(num_classes) - truth[:, None]) % num_classes
        return {
            "label": ((self.label[rows] + truth) % num_classes).astype(np.int32),
            **{name: values[rows] for name, values in self.facts.items()},
            "probs": np.take_along_axis(self.probs[rows], turned, axis=1).astype(np.float16),
        }


def draw_predictions(context: StageContext) -> StageResult:
    """As the body of `predict`, but that no network is asked."""
    dataset = Dataset.open(context.inputs["dataset"], context.cache, context.runtime)
    settings = context.section
    assert isinstance(settings, PredictSettings)
    pool, held = dataset.pool("unlabeled"), dataset.pool("validation")
    ids, truth = pool.sample_ids(), pool.truth()
    description: dict[str, Any] = {
        "schema": schema.SCHEMA_VERSION,
        "classes": list(dataset.classes),
        "stored_classes": dataset.num_classes,
        "teachers": [context.inputs["model"].digest],
        "temperature": 1.0,
        "views": 4,
        "parts": {name: context.inputs["dataset"].parts[name] for name in ("unlabeled", "validation")},
    }
    (context.output / "shards").mkdir()
    teacher, shards = Teacher(dataset.num_classes, settings.seed), []
    for number, first in enumerate(range(0, len(ids), SHARD)):
        rows = slice(first, first + SHARD)
        table = prediction_table(ids[rows], [teacher.columns(truth[rows])])
        name = f"part-{number:05d}.parquet"
        (context.output / "shards" / name).write_bytes(parquet_bytes(table, description))
        shards.append({"file": name, "rows": len(table), "first": first})
    drawn = prediction_table(held.sample_ids(), [teacher.columns(held.labels)])
    fitted = np.zeros(len(held), bool)
    content = parquet_bytes(held_out_table(drawn, held.labels, fitted), description)
    (context.output / schema.VALIDATION).write_bytes(content)
    (context.output / schema.DESCRIPTION).write_text(json.dumps({**description, "shards": shards}))
    return StageResult({"images": len(ids), "unreadable": 0})


def draw_evaluation(context: StageContext) -> StageResult:
    """As the body of `evaluate`, but that no network is asked."""
    dataset = Dataset.open(context.inputs["dataset"], context.cache, context.runtime)
    settings = context.section
    assert isinstance(settings, EvaluateSettings)
    teacher = Teacher(dataset.num_classes, settings.seed)
    metrics: dict[str, Any] = {"temperature": 1.1}
    confusion: dict[str, Any] = {"classes": list(dataset.classes)}
    tables = []
    for split in ("validation", "test"):
        pool = dataset.pool(split)
        probs = teacher.columns(pool.labels)["probs"].astype(np.float32)
        said = probs.argmax(axis=1)
        metrics[split] = measure(probs, pool.labels, dataset.classes, resamples=20)
        confusion[split] = confusion_matrix(pool.labels, said, dataset.num_classes).tolist()
        rows = {
            "sample_id": pool.sample_ids(),
            "label": pool.labels,
            "predicted": said,
            "confidence": probs.max(axis=1),
        }
        tables.append(pd.DataFrame({"split": split, **rows, "probs": list(probs)}))
    pd.concat(tables).to_parquet(context.output / "predictions.parquet", index=False)
    (context.output / "metrics.json").write_text(json.dumps(metrics))
    (context.output / "confusion.json").write_text(json.dumps(confusion))
    return StageResult({f"{split}_accuracy": metrics[split]["accuracy"] for split in ("validation", "test")})


def draw_model(context: StageContext) -> StageResult:
    """A learning curve in place of a network."""
    steps = np.arange(1, 2_001)
    curve = pa.table({"step": steps, "validation_accuracy": 1 - np.exp(-steps / 500)})
    curve.to_pandas().to_parquet(context.output / "history.parquet", index=False)
    return StageResult({"model": "none", "validation_accuracy": 0.9, "warnings": []})


class Making:
    """Writes a run folder of a given size."""

    def __init__(self, workspace: Path, config: RunConfig) -> None:
        self.config, self.run = config, Run.create(workspace, config)

    def answer(self, request: Request, round_number: int) -> Artifact:
        """One stage, with its record."""
        outcome = execute(request, self.run.workspace, self.config.runtime)
        artifact = outcome.artifact
        self.run.record(
            StageRecord(
                name=request.name,
                stage=request.stage,
                state="computed",
                key=request.key,
                round=round_number,
                digest=artifact.digest,
                artifact=str(artifact.path),
                seconds=outcome.seconds,
                order=len(self.run.stages()),
            )
        )
        return artifact

    def drawn(self, name: str, stage: str, body: str, section: Any, round_number: int, **inputs: Artifact) -> Artifact:
        """A stage whose body is one of this file."""
        request = Request(name, stage, 1, f"benchmarks.report_size:{body}", section, inputs, seed=round_number)
        return self.answer(request, round_number)

    def make(self) -> Run:
        """Data set, teacher and all rounds."""
        config = self.config
        dataset = self.answer(dataset_request(config.data, fingerprint(config.data, self.run.workspace / "cache")), 0)
        model = self.drawn("teacher", "train", "draw_model", LearnerSettings(), 0, dataset=dataset)
        evaluation = self.evaluated("evaluate-teacher", 0, dataset, model)
        selection: Artifact | None = None
        for number, settings in enumerate(config.rounds, 1):
            section = settings.predict.model_copy(update={"seed": number})
            predictions = self.drawn(
                f"predict-{number}", "predict", "draw_predictions", section, number, dataset=dataset, model=model
            )
            request = select_request(f"select-{number}", settings.select, dataset, predictions, selection)
            selection = self.answer(request, number)
            model = self.drawn(
                f"student-{number}", "train", "draw_model", settings.student, number,
                dataset=dataset, selection=selection,
            )  # fmt: skip
            teacher, evaluation = evaluation, self.evaluated(f"evaluate-{number}", number, dataset, model)
            request = gate_request(f"gate-{number}", settings.gate, dataset, teacher, evaluation, selection)
            self.answer(request, number)
        self.run.update(state="done", stopped=f"all {len(config.rounds)} rounds done", finished=time.time())
        return self.run

    def evaluated(self, name: str, number: int, dataset: Artifact, model: Artifact) -> Artifact:
        section = self.config.evaluate.model_copy(update={"seed": number})
        return self.drawn(name, "evaluate", "draw_evaluation", section, number, dataset=dataset, model=model)


WRITE = """
import json, sys, time
from pathlib import Path
started = time.monotonic()
from selftrain.ssl_tasks.report.page import write_report
from selftrain.ssl_tasks.store.runs import Run
write_report(Run(Path(sys.argv[1])), Path(sys.argv[2]))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # getrusage would count the parent's peak too
print(json.dumps([time.monotonic() - started, int(status["VmHWM"].split()[0]) / 2**20]))
"""


def write_and_measure(run: Path, page: Path) -> tuple[float, float]:
    """Seconds and peak gigabytes of a process that does nothing else."""
    command = [sys.executable, "-c", WRITE, str(run), str(page)]
    seconds, gigabytes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, gigabytes


def measured(images: int, classes: int, rounds: int, image_size: int, folder: Path) -> dict[str, Any]:
    """One line of the table."""
    config = RunConfig.model_validate(
        {
            "name": f"report-{images}-{classes}",
            "data": {
                "source": {"name": "synthetic", "size": images, "classes": classes, "image_size": image_size},
                "split": {"labels_per_class": 5, "validation": min(5_000, images // 10)},
            },
            "rounds": [{"select": {"threshold": 0.5}}] * rounds,
        }
    )
    run = Making(folder / "workspace", config).make()
    page = folder / "report.html"
    seconds, gigabytes = write_and_measure(run.path, page)
    return {
        "images": images,
        "predictions": images * rounds,
        "classes": classes,
        "rounds": rounds,
        "seconds": round(seconds, 2),
        "peak GB": round(gigabytes, 3),
        "file MB": round(page.stat().st_size / 1e6, 2),
    }


def main() -> None:
    """Small sizes alone with --quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    sizes = [(5_000, 10, 2, 32)] if quick else [(100_000, 10, 3, 32), (1_000_000, 100, 1, 32), (200_000, 250, 3, 96)]
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="report-size-") as folder:
            rows.append(measured(*size, Path(folder)))
    judged = [row for row in rows if row["predictions"] <= 1_000_000]
    meets = all(row["seconds"] < SECONDS and row["peak GB"] < GIGABYTES for row in judged) and all(
        row["file MB"] < MEGABYTES for row in rows
    )
    target = {
        "seconds": SECONDS,
        "peak_gb": GIGABYTES,
        "file_mb": MEGABYTES,
        "of": "1,000,000 predictions, 100 classes",
    }
    largest = {name: max(row[name] for row in judged) for name in ("seconds", "peak GB")}
    publish(
        "report_size",
        rows,
        {**largest, "file MB": max(row["file MB"] for row in rows), "target": target, "meets": meets},
        quick,
    )


if __name__ == "__main__":
    main()
