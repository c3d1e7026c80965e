"""A stage whose results change gets another version; without it, stored results would be reused wrongly.

`stage_answers.json` has what each stage of a tiny chain answered at its version. Numbers are compared with a tolerance
that other machines keep and changes of meaning do not, so that no refactoring has to be accepted. After raising a
version: `python -m tests.test_stage_versions --accept`.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from selftrain.flows.rounds.stages import (
    METHOD_CHANGES,
    VERSIONS,
    check_request,
    dataset_request,
    evaluate_request,
    features_request,
    gate_request,
    given_request,
    predict_request,
    select_request,
    train_request,
    weights_request,
)
from selftrain.models import ModelSettings
from selftrain.ssl_tasks.data.sources import fingerprint
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.methods.table import METHODS
from selftrain.ssl_tasks.settings.pseudo_labels import FeatureSettings, PredictSettings, SelectSettings
from selftrain.ssl_tasks.settings.recipe import parse_recipe
from selftrain.ssl_tasks.settings.run_config import EvaluateSettings, GateSettings, LearnerSettings, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, digest_json
from tests.pseudo_labels.tables import Held, Row, Tables, run_select, selected

RECORD = Path(__file__).with_name("stage_answers.json")
RECIPE = {"data": {"source": {"name": "digits"}, "split": {"labels_per_class": 5, "validation": 100, "test": 100}}}
TRAIN = {"steps": 3, "batch_size": 8, "unlabeled_ratio": 2, "log_every": 1, "evaluate_every": 3, "precision": "fp32"}
TAUGHT = {"steps": 60, "learning_rate": 0.1}  # a teacher that is mostly right, so that there is something to calibrate
WITH_SELECTION = ("noisy_student", "distillation")
METHOD_SETTINGS = {"fixmatch": {"threshold": 0.1}, "uda": {"threshold": 0.1}}  # at 0.95, nothing passes in three steps
SELECTIONS: Mapping[str, Mapping[str, Any]] = {
    "threshold": {"threshold": 0.6},
    "adaptive": {"threshold": 0.9, "adaptive": True},
    "top_k": {"threshold": None, "top_k": 4, "soft": False},
    "margin": {"threshold": None, "min_margin": 0.5, "balance": "none"},
    "target_precision": {"threshold": None, "target_precision": 0.5},
}
Answers = dict[str, dict[str, Any]]
VERSION_OF = {stage: version for stage, version in VERSIONS.items() if stage != "train"}
VERSION_OF |= {f"train {method}": VERSIONS["train"] + METHOD_CHANGES.get(method, 0) for method in METHODS}
VERSION_OF |= {"train linear": VERSIONS["train"] + METHOD_CHANGES.get("linear", 0)}
VERSION_OF |= {f"predict {source}": VERSIONS["predict"] for source in ("propagate", "knn")}


def compute(workspace: Path) -> Answers:
    """Computes every stage: on digits that each method sees for three steps, and on a table written by hand."""
    runtime = RuntimeSettings(threads=1, device="cpu")

    def answer(request: Request) -> Artifact:
        return execute(request, workspace, runtime).artifact

    config = parse_recipe(RECIPE, Path("versions.yaml")).config
    dataset = answer(dataset_request(config.data, fingerprint(config.data, workspace / "cache")))
    teacher = answer(train_request("teacher", learner("supervised", **TAUGHT), dataset, 0))
    predictions = answer(predict_request("predict", PredictSettings(views=2, temperature="fit"), dataset, [teacher]))
    selection = answer(select_request("select", SelectSettings(threshold=0.5), dataset, predictions, None))
    models = {
        name: answer(train_request(name, learner(name), dataset, 0, selection if name in WITH_SELECTION else None))
        for name in METHODS
    }
    fitted = learner("linear", **TAUGHT)
    features = answer(features_request("features", FeatureSettings(precision="fp32"), fitted.model, dataset))
    by_neighbors = {
        f"predict {source}": predict_request(
            "p", PredictSettings.model_validate({"source": source}), dataset, [], [features]
        )
        for source in ("propagate", "knn")
    }
    evaluations = [
        answer(evaluate_request("evaluate", EvaluateSettings(bootstrap=20), dataset, model))
        for model in (teacher, models["noisy_student"])
    ]
    gate = answer(gate_request("gate", GateSettings(), dataset, *evaluations, selection))
    given = answer(given_request("given", teacher.path))
    weights = answer(
        weights_request("weights", ModelSettings(name="mlp", pretrained=teacher.file("model.safetensors")))
    )
    check = answer(check_request("check", learner("supervised", tune="lora"), dataset, None))
    return {
        "dataset": dict(dataset.parts),
        **{f"train {name}": trained(model) for name, model in models.items()},
        "features": vectors(features),
        "train linear": weight(answer(train_request("linear", fitted, dataset, 0, features=features))),
        **{name: predicted(answer(request)) for name, request in by_neighbors.items()},
        "given": {"files": sorted(given.manifest["files"])},
        "weights": dict(weights.summary),
        "check": dict(check.summary),
        "predict": predicted(predictions),
        "select": {name: chosen(workspace / name, settings) for name, settings in SELECTIONS.items()},
        "evaluate": {name: value for name, value in evaluations[0].summary.items() if name != "computed_by"},
        "gate": dict(gate.summary),
    }


def learner(method: str, **train: Any) -> LearnerSettings:
    """Three steps of a method."""
    settings = {"name": method, **METHOD_SETTINGS.get(method, {})}
    return LearnerSettings.model_validate(
        {"model": {"name": "mlp", "width": 16}, "method": settings, "train": {**TRAIN, **train}}
    )


def trained(model: Artifact) -> dict[str, float]:
    """Returns the losses, and the change of the weights."""
    from safetensors.numpy import load_file

    history = pd.read_parquet(model.file("history.parquet"))
    weights = load_file(model.file("model.safetensors")).values()
    losses = history[[name for name in history if "loss" in name]].mean()
    return {**losses.dropna().to_dict(), "weights": float(sum(np.abs(one.astype(np.float64)).sum() for one in weights))}


def weight(model: Artifact) -> dict[str, float]:
    """How far the weights of the last layer went, and what they were chosen by."""
    from safetensors.numpy import load_file

    weights = load_file(model.file("model.safetensors"))
    sizes = {name: float(np.abs(weights[name]).sum()) for name in ("head.weight", "head.bias")}
    return {**sizes, "penalty": model.summary["penalty"], "temperature": model.summary["temperature"]}


def vectors(features: Artifact) -> dict[str, float]:
    """The mean and the deviation of all features."""
    tables = [pd.read_parquet(path) for path in sorted(features.path.glob("shards/*.parquet"))]
    found = np.stack(pd.concat(tables)["features"].to_numpy()).astype(np.float64)
    return {"mean": float(found.mean()), "deviation": float(found.std()), "images": len(found)}


def predicted(predictions: Artifact) -> dict[str, float]:
    """The mean of every column of numbers."""
    table = pd.concat([pd.read_parquet(path) for path in sorted(predictions.path.glob("shards/*.parquet"))])
    probs = np.stack(table["probs"].to_numpy()).astype(np.float64).mean(axis=0)
    means = table[["confidence", "margin", "entropy", "view_agreement"]].astype(float).mean().to_dict()
    return {**means, **{f"class {number}": value for number, value in enumerate(probs.tolist())}}


def chosen(folder: Path, settings: Mapping[str, Any]) -> str:
    """A digest of what is chosen from a table of 60 images and 300 validation images in three classes."""
    rows = [Row(f"s{n:02}", n % 3, 0.34 + 0.65 * (n * 37 % 60) / 60, 0.1 + 0.9 * (n * 23 % 60) / 60) for n in range(60)]
    held = [Held(n % 3, n % 3 if n % 7 else (n + 1) % 3, 0.34 + 0.65 * (n * 17 % 60) / 60) for n in range(300)]
    labeled = [(f"l{n}", n % 3, f"c{n}") for n in range(6)]
    tables = Tables(folder, rows, labeled=labeled, validation=held)
    found = selected(run_select(tables, folder / "output", SelectSettings.model_validate(settings)))
    names = ("sample_id", "label", "rank_in_class", "copies", "source")
    return f"{len(found)} rows, {digest_json([[row[name] for name in names] for row in found])[:16]}"


def differences(recorded: Any, now: Any, where: str = "") -> Iterator[str]:
    """Returns the places where two results differ by more than machines do."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for name in sorted({*recorded, *now}):
            yield from differences(recorded.get(name), now.get(name), f"{where}.{name}" if where else name)
    elif isinstance(recorded, (int, float)) and isinstance(now, (int, float)):
        if now != pytest.approx(recorded, rel=2e-3, abs=1e-3):
            yield f"{where} was {recorded:.6g} and is {now:.6g}"
    elif recorded != now:
        yield f"{where} was {recorded} and is {now}"


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return plain(compute(tmp_path_factory.mktemp("versions")))


@pytest.mark.parametrize("stage", VERSION_OF)
def test_a_stage_with_other_results_has_another_version(now: Answers, stage: str) -> None:
    record = json.loads(RECORD.read_text())[stage]
    assert record["version"] == VERSION_OF[stage], (
        f"{ACCEPT} writes down what {stage} answers at version {VERSION_OF[stage]}"
    )
    found = list(differences(record["answer"], now[stage]))
    assert not found, (
        f"{stage} answers otherwise ({'; '.join(found[:3])}): if it shall, raise {RAISED} and run {ACCEPT}"
    )


def test_what_another_machine_makes_of_a_number_is_no_difference() -> None:
    assert not list(differences({"a": {"b": 1.0}}, {"a": {"b": 1.001}}))
    assert list(differences({"a": {"b": 1.0}}, {"a": {"b": 1.01}})) == ["a.b was 1 and is 1.01"]
    assert list(differences({"a": "x"}, {"a": "y", "c": 1})) == ["a was x and is y", "c was None and is 1"]


ACCEPT = "`python -m tests.test_stage_versions --accept`"
RAISED = "its VERSIONS, or METHOD_CHANGES of a method alone, in flows/rounds/stages.py"


def plain(answers: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(answers))


def accept() -> None:
    """Writes the record; refuses to write another answer under the same version."""
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        answers = plain(compute(Path(folder)))
    for stage, answer in answers.items():
        before = recorded.get(stage, {"version": None, "answer": {}})
        if before["version"] == VERSION_OF[stage] and (found := list(differences(before["answer"], answer))):
            sys.exit(f"{stage} answers otherwise ({found[0]}): raise {RAISED} first")
        recorded[stage] = {"version": VERSION_OF[stage], "answer": answer}
    RECORD.write_text(json.dumps({stage: recorded[stage] for stage in answers}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--accept"]:
        sys.exit(f"{ACCEPT}: after a version was raised")
    accept()
