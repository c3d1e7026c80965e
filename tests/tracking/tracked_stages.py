"""A pipeline in miniature: artifacts with the real files, written in milliseconds, without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from selftrain.ssl_tasks.execution.stage import Request, StageContext, StageResult, execute
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.store.artifacts import Artifact

SAMPLES = [f"image-{number}" for number in range(6)]


class Tiny(Section):
    """The settings of a miniature stage."""

    value: int = 0
    accuracy: float = 0.5


def dataset(context: StageContext) -> StageResult:
    """Six unlabelled images of two classes."""
    table = pd.DataFrame({"sample_id": SAMPLES, "label": -1, "split": "unlabeled", "content": "c0ffee", "uri": "x.png"})
    table.to_parquet(context.output / "manifest.parquet")
    (context.output / "info.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    parts = {name: name[0] * 64 for name in ("labeled", "unlabeled", "validation", "test")}
    return StageResult({"labeled": 4, "unlabeled": 6}, parts)


def train(context: StageContext) -> StageResult:
    """Weights that say which section made them."""
    settings = context.section
    assert isinstance(settings, Tiny)
    save_file({"weight": np.full(3, settings.value, np.float32)}, context.output / "model.safetensors")
    (context.output / "model.json").write_text("{}")
    return StageResult({"validation_accuracy": settings.accuracy})


def predict(context: StageContext) -> StageResult:
    """The first three are cats, the last cannot be read."""
    table = pd.DataFrame({"sample_id": SAMPLES, "label": [0, 0, 0, 1, 1, np.nan], "error": [None] * 5 + ["truncated"]})
    table = table.assign(confidence=[0.9, 0.8, 0.7, 0.6, 0.5, np.nan], margin=0.1, entropy=0.2)
    (context.output / "shards").mkdir()
    table.to_parquet(context.output / "shards" / "part-00000.parquet")
    return StageResult({"predicted": 5})


def select(context: StageContext) -> StageResult:
    """Two of them, one corrected by a person."""
    table = pd.DataFrame({"sample_id": SAMPLES[:2], "label": [0, 1], "copies": [2, 1], "source": ["model", "override"]})
    table.assign(confidence=[0.9, 0.8]).to_parquet(context.output / "selection.parquet")
    (context.output / "stats.json").write_text(json.dumps({"cat": {"kept": 1}}))
    return StageResult({"selected": 2})


def evaluate(context: StageContext) -> StageResult:
    """An accuracy as asked."""
    settings = context.section
    assert isinstance(settings, Tiny)
    (context.output / "metrics.json").write_text(json.dumps({"validation": {"accuracy": settings.accuracy}}))
    return StageResult({"validation_accuracy": settings.accuracy, "test_accuracy": settings.accuracy - 0.01})


def answer(
    workspace: Path, stage: str, inputs: dict[str, Artifact], depends: dict[str, str], **settings: Any
) -> Artifact:
    """One stage's artifact."""
    request = Request(stage, stage, 1, f"tests.tracking.tracked_stages:{stage}", Tiny(**settings), inputs, depends)
    return execute(request, workspace).artifact


def pipeline(workspace: Path) -> dict[str, Artifact]:
    """dataset → teacher → predictions → selection → student → evaluation, and the teacher's evaluation."""
    data = answer(workspace, "dataset", {}, {})
    labels = {name: data.parts[name] for name in ("labeled", "validation")}
    pool = {"unlabeled": data.parts["unlabeled"]}
    teacher = answer(workspace, "train", {"dataset": data}, labels, value=1, accuracy=0.8)
    inputs = {"dataset": data, "model": teacher}
    predictions = answer(workspace, "predict", inputs, {**pool, "model": teacher.digest})
    inputs = {"dataset": data, "predictions": predictions}
    selection = answer(workspace, "select", inputs, {**data.parts, "predictions": predictions.digest})
    inputs = {"dataset": data, "selection": selection}
    student = answer(
        workspace, "train", inputs, {**labels, **pool, "selection": selection.digest}, value=2, accuracy=0.9
    )
    held = {name: data.parts[name] for name in ("validation", "test")}
    first = answer(
        workspace, "evaluate", {"dataset": data, "model": teacher}, {**held, "model": teacher.digest}, accuracy=0.8
    )
    second = answer(
        workspace, "evaluate", {"dataset": data, "model": student}, {**held, "model": student.digest}, accuracy=0.9
    )
    return {
        "dataset": data,
        "teacher": teacher,
        "evaluate-teacher": first,
        "predict-1": predictions,
        "select-1": selection,
        "student-1": student,
        "evaluate-1": second,
    }
