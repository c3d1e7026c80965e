"""Runs the stage `gate`, which decides by the validation images whether another round follows.

It never uses the test images."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selftrain.ssl_tasks.evaluation.metrics import compare_evaluations, read_predictions
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.settings.run_config import GateSettings
from selftrain.ssl_tasks.store.artifacts import Artifact


@dataclass(frozen=True)
class Check:
    """One check of the gate: the value found, and its limit."""

    name: str
    passed: bool
    found: float | None
    limit: float
    reason: str  # a sentence about a failure


def gate(context: StageContext) -> StageResult:
    """Writes gate.json: the decision, its reason, every check with its numbers, and the paired comparison."""
    settings = context.section
    assert isinstance(settings, GateSettings)
    teacher, student, selection = (context.inputs[role] for role in ("teacher", "student", "selection"))
    classes = json.loads(context.inputs["dataset"].file("info.json").read_text())["classes"]
    compared = compare_evaluations(teacher, student, "validation")
    checks = [
        *_selection_checks(settings, selection, context.inputs["dataset"], len(classes)),
        _collapse_check(settings, student, classes),
        *_comparison_checks(settings, compared),
    ]
    decision, reason = _decide(settings, checks, compared)
    result = {"decision": decision, "reason": reason, "checks": [asdict(one) for one in checks], "compared": compared}
    (context.output / "gate.json").write_text(json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n")
    numbers = {one.name: one.found for one in checks}
    return StageResult(summary={"decision": decision, "reason": reason, "numbers": numbers})


def total_variation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Returns half the summed absolute difference of two distributions: 0 is equal, 1 is disjoint."""
    return float(np.abs(first - second).sum() / 2)


def _selection_checks(settings: GateSettings, selection: Artifact, dataset: Artifact, K: int) -> Iterator[Check]:
    rows = pd.read_parquet(selection.file("selection.parquet"), columns=["label", "copies"])
    yield Check(
        "selected",
        len(rows) >= settings.min_selected,
        len(rows),
        settings.min_selected,
        f"too few labels: the round chose {len(rows)} pseudo-labels, expected at least {settings.min_selected}",
    )
    chosen = np.bincount(rows["label"], rows["copies"], K)
    if not chosen.sum():
        return
    manifest = pd.read_parquet(dataset.file("manifest.parquet"), columns=["label", "split", "error"])
    labeled = manifest[(manifest["split"] == "labeled") & manifest["error"].isna()]
    shares = np.bincount(labeled["label"], minlength=K) / len(labeled)
    drift = total_variation(chosen / chosen.sum(), shares)
    yield Check(
        "drift",
        drift <= settings.max_drift,
        drift,
        settings.max_drift,
        f"drifted labels: the selected classes' shares differ from the labelled ones' by {drift:.2f} (total "
        f"variation), expected at most {settings.max_drift:g}",
    )


def _collapse_check(settings: GateSettings, student: Artifact, classes: list[str]) -> Check:
    """Checks the largest class among the predictions; a class with such a true share is no collapse."""
    table = read_predictions(student, "validation")
    if table.empty:
        return Check("class_share", True, None, settings.max_class_share, "")
    predicted, true = (np.bincount(table[name], minlength=len(classes)) / len(table) for name in ("predicted", "label"))
    largest = int(predicted.argmax())
    share = float(predicted[largest])
    passed = share <= max(settings.max_class_share, float(true[largest]))
    reason = (
        f"class collapse: {share:.0%} of the student's predictions on validation are '{classes[largest]}', expected "
        f"at most {settings.max_class_share:.0%}"
    )
    return Check("class_share", passed, share, settings.max_class_share, reason)


def _comparison_checks(settings: GateSettings, compared: dict[str, Any]) -> Iterator[Check]:
    if not compared["count"]:
        reason = "no gain can be shown: there are no validation images"
        yield Check("gain", not settings.require_gain, None, 0.0, reason)
        return
    test, change = compared["mcnemar"], compared["difference"]
    accuracies = f"{compared['first_accuracy']:.1%} to {compared['second_accuracy']:.1%} on validation"
    worse = test["p_second_worse"]
    yield Check(
        "p_value_worse",
        change >= 0 or worse > settings.max_p_value_worse,
        worse,
        settings.max_p_value_worse,
        f"the student is worse than its teacher: from {accuracies}, {test['gains']} images gained and "
        f"{test['losses']} lost (McNemar's exact test, p = {worse:.2g})",
    )
    reason = f"no gain: from {accuracies}"
    yield Check("gain", change > 0 or not settings.require_gain, change, 0.0, reason)


def _decide(settings: GateSettings, checks: list[Check], compared: dict[str, Any]) -> tuple[str, str]:
    failed = [one.reason for one in checks if not one.passed]
    if failed and settings.enabled:
        return "stop", "; ".join(failed)
    if not settings.enabled:
        return "continue", "the gate is off" + (
            f"; it would have stopped the run: {'; '.join(failed)}" if failed else ""
        )
    if not compared["count"]:
        return "continue", "no check failed; there are no validation images to compare on"
    return "continue", (
        f"validation accuracy went from {compared['first_accuracy']:.1%} to {compared['second_accuracy']:.1%}; "
        "no check failed"
    )
