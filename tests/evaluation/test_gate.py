"""The gate stops for a reason, and says which."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.evaluation.gate import gate, total_variation
from selftrain.ssl_tasks.evaluation.metrics import compare_evaluations
from selftrain.ssl_tasks.execution.stage import StageContext
from selftrain.ssl_tasks.settings.run_config import GateSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

LABELS = np.arange(100) % 2


def evaluation(folder: Path, right: np.ndarray, labels: np.ndarray = LABELS) -> Artifact:
    """An evaluation artifact whose model is right where `right` says so."""
    folder.mkdir()
    predicted = np.where(right, labels, 1 - labels)
    table = pd.DataFrame({"split": "validation", "sample_id": [f"s{one:03}" for one in range(len(labels))]})
    table = table.assign(label=labels, predicted=predicted, confidence=0.9)
    table.to_parquet(folder / "predictions.parquet")
    return Artifact(folder, {"digest": folder.name})


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """A teacher that is right on 80 of 100, a student on 88, and 60 selected labels in the labelled set's shares."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "selection").mkdir()
    (tmp_path / "dataset" / "info.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    manifest = pd.DataFrame({"label": [0, 1, 0, 1, 0], "split": ["labeled"] * 4 + ["test"], "error": None})
    manifest.to_parquet(tmp_path / "dataset" / "manifest.parquet")
    chosen = pd.DataFrame({"label": [0, 1] * 30, "copies": 1})
    chosen.to_parquet(tmp_path / "selection" / "selection.parquet")
    return {
        "teacher": evaluation(tmp_path / "teacher", np.arange(100) < 80),
        "student": evaluation(tmp_path / "student", np.arange(100) < 88),
        "dataset": Artifact(tmp_path / "dataset", {}),
        "selection": Artifact(tmp_path / "selection", {}),
    }


def judge(inputs: Mapping[str, Artifact], **settings: Any) -> dict[str, Any]:
    """The gate's summary; gate.json must say the same."""
    output = inputs["dataset"].path.parent / "gate"
    output.mkdir()
    result = gate(StageContext(GateSettings(**settings), inputs, output, output, output))
    written = json.loads((output / "gate.json").read_text())
    assert {name: written[name] for name in ("decision", "reason")}.items() <= result.summary.items()
    return dict(result.summary)


def test_a_better_student_continues_and_the_reason_has_both_accuracies(inputs: dict[str, Artifact]) -> None:
    found = judge(inputs)
    assert found["decision"] == "continue"
    assert "80.0% to 88.0%" in found["reason"]


def test_a_student_that_is_significantly_worse_stops_the_rounds(inputs: dict[str, Artifact]) -> None:
    found = judge({**inputs, "teacher": inputs["student"], "student": inputs["teacher"]})
    assert found["decision"] == "stop"
    assert "worse than its teacher" in found["reason"]
    assert found["numbers"]["p_value_worse"] == pytest.approx(0.5**8)


def test_a_student_that_is_worse_by_chance_continues(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    student = evaluation(tmp_path / "weaker", np.arange(100) < 79)
    assert judge({**inputs, "student": student})["decision"] == "continue"


def test_no_gain_stops_only_where_a_gain_is_required(inputs: dict[str, Artifact]) -> None:
    found = judge({**inputs, "student": inputs["teacher"]}, require_gain=True)
    assert found["decision"] == "stop"
    assert found["reason"].startswith("no gain")


def test_a_student_that_says_one_class_alone_has_collapsed(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    teacher = evaluation(tmp_path / "half", LABELS == 0)
    student = evaluation(tmp_path / "collapsed", LABELS == 1)
    found = judge({**inputs, "teacher": teacher, "student": student})
    assert found["decision"] == "stop"
    assert "class collapse: 100%" in found["reason"]
    assert "'dog'" in found["reason"]


def test_a_class_that_truly_dominates_is_no_collapse(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    labels, right = np.zeros(100, int), np.ones(100, bool)
    pair = {role: evaluation(tmp_path / f"rare-{role}", right, labels) for role in ("teacher", "student")}
    assert judge({**inputs, **pair})["decision"] == "continue"


def test_too_few_labels_stop(inputs: dict[str, Artifact]) -> None:
    found = judge(inputs, min_selected=61)
    assert found["decision"] == "stop"
    assert "chose 60 pseudo-labels, expected at least 61" in found["reason"]


def test_drifted_labels_stop_and_copies_count(inputs: dict[str, Artifact]) -> None:
    chosen = pd.DataFrame({"label": [0, 1], "copies": [9, 1]})
    chosen.to_parquet(inputs["selection"].file("selection.parquet"))
    found = judge(inputs, max_drift=0.3)
    assert found["decision"] == "stop"
    assert found["numbers"]["drift"] == pytest.approx(0.4)


def test_a_gate_that_is_off_continues_and_reports_its_checks(inputs: dict[str, Artifact]) -> None:
    found = judge(inputs, min_selected=61, enabled=False)
    assert found["decision"] == "continue"
    assert "60 pseudo-labels" in found["reason"]


@pytest.mark.parametrize(("require_gain", "decision"), [(False, "continue"), (True, "stop")])
def test_without_validation_images_no_gain_can_be_shown(
    inputs: dict[str, Artifact], tmp_path: Path, require_gain: bool, decision: str
) -> None:
    none = np.empty(0, int)
    pair = {role: evaluation(tmp_path / f"none-{role}", none == 0, none) for role in ("teacher", "student")}
    found = judge({**inputs, **pair}, require_gain=require_gain)
    assert found["decision"] == decision
    assert "no validation images" in found["reason"]


def test_evaluations_of_other_images_are_not_compared(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    other = evaluation(tmp_path / "other", np.ones(50, bool), LABELS[:50])
    with pytest.raises(DataError, match="found 100 and 50 validation images, of which 50 are in both"):
        compare_evaluations(inputs["teacher"], other, "validation")


def test_corruption_error_is_reported_where_both_were_corrupted(inputs: dict[str, Artifact]) -> None:
    for role, accuracy in (("teacher", 0.5), ("student", 0.75)):
        rows = {"corruptions": {"fog": [{"severity": 1, "accuracy": accuracy}]}}
        inputs[role].file("robustness.json").write_text(json.dumps(rows))
    found = compare_evaluations(inputs["teacher"], inputs["student"], "validation")
    assert found["mean_corruption_error"] == pytest.approx(50)


def test_total_variation_of_disjoint_shares_is_one() -> None:
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
