"""The stage, on real digits and a small trained network: its files, its numbers, and that it says the same twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from selftrain.models.settings import ModelSettings
from selftrain.ssl_tasks.evaluation import stage
from selftrain.ssl_tasks.evaluation.comparison import compare_evaluations
from selftrain.ssl_tasks.evaluation.robustness import CORRUPTIONS
from selftrain.ssl_tasks.execution.devices import computed_by, prepare_backends
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings
from selftrain.ssl_tasks.settings.run_config import EvaluateSettings, LearnerSettings, RuntimeSettings
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.model import load_card, save_card

RUNTIME = RuntimeSettings(threads=1, device="cpu")
Inputs = dict[str, Artifact]


def answer(workspace: Path, stage: str, body: str, section: Any, inputs: Inputs) -> Artifact:
    """One stage's artifact, computed in this process."""
    return execute(Request(stage, stage, 1, body, section, inputs), workspace, RUNTIME).artifact


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Digits with twenty labels a class, and a perceptron that has seen them a little."""
    workspace = tmp_path_factory.mktemp("evaluation")
    data = DataSettings(split=SplitSettings(labels_per_class=20))
    dataset = answer(workspace, "dataset", "selftrain.ssl_tasks.data.dataset:build_dataset", data, {})
    learner = LearnerSettings(
        model=ModelSettings(name="mlp", width=32),
        train=TrainSettings(steps=60, batch_size=32, precision="fp32", evaluate_every=30),
    )
    model = answer(workspace, "train", "selftrain.ssl_tasks.training.stage:train_model", learner, {"dataset": dataset})
    return {"dataset": dataset, "model": model}


def evaluated(workspace: Path, inputs: Inputs, **settings: Any) -> Artifact:
    """The evaluation's artifact."""
    section = EvaluateSettings(**{"bootstrap": 50, **settings})
    (workspace / "cache").parent.mkdir(exist_ok=True)
    if not (workspace / "cache").exists():
        (workspace / "cache").symlink_to(inputs["dataset"].path.parents[2] / "cache")
    return answer(workspace, "evaluate", "selftrain.ssl_tasks.evaluation.stage:evaluate", section, inputs)


def test_files_summary_and_tables_agree(workspace: Path, inputs: Inputs) -> None:
    found = evaluated(workspace, inputs)
    metrics = json.loads(found.file("metrics.json").read_text())
    table = pd.read_parquet(found.file("predictions.parquet"))
    matrices = json.loads(found.file("confusion.json").read_text())
    for split in ("validation", "test"):
        rows = table[table["split"] == split]
        accuracy = (rows["label"] == rows["predicted"]).mean()
        assert metrics[split]["accuracy"] == found.summary[f"{split}_accuracy"] == pytest.approx(accuracy)
        assert found.summary[f"{split}_count"] == len(rows) == np.sum(matrices[split])
        low, high = found.summary[f"{split}_interval"]
        assert low < accuracy < high
        assert np.trace(matrices[split]) == (rows["label"] == rows["predicted"]).sum()
        assert [one["class"] for one in metrics[split]["per_class"]] == matrices["classes"]
    assert found.summary["test_accuracy"] > 0.5
    assert found.summary["computed_by"] == computed_by(torch.device("cpu"), torch.float32)
    probs = np.stack(table["probs"].to_list())
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert (probs.argmax(axis=1) == table["predicted"]).all()
    assert not table["sample_id"].duplicated().any()
    assert not found.file("robustness.json").exists()


def test_temperature_betters_the_likelihood_it_was_fitted_to(workspace: Path, inputs: Inputs) -> None:
    metrics = json.loads(evaluated(workspace, inputs).file("metrics.json").read_text())
    assert metrics["validation"]["tempered"]["nll"] <= metrics["validation"]["nll"]
    assert metrics["temperature"] > 0


def test_in_fp32_the_batch_size_changes_no_byte(workspace: Path, tmp_path: Path, inputs: Inputs) -> None:
    settings = {"corruptions": True, "attacks": (0.1,), "robustness_images": 20}
    first = evaluated(workspace, inputs, **settings, batch_size=256)
    second = evaluated(tmp_path / "other", inputs, **settings, batch_size=64)
    assert first.digest == second.digest


def test_an_fp32_model_is_measured_and_every_model_attacked_in_fp32(
    workspace: Path, tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, bool] = {}

    def spy(name: str) -> None:
        original = getattr(stage, name)

        def noting(*arguments: Any) -> Any:
            assert torch.backends.cudnn.deterministic
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32
            seen[name] = torch.backends.cudnn.allow_tf32
            return original(*arguments)

        monkeypatch.setattr(stage, name, noting)

    for name in ("predict_logits", "attack_accuracy", "corruption_accuracy"):
        spy(name)
    asked = {"corruptions": True, "attacks": (0.1,), "robustness_images": 5}
    prepare_backends("auto", None)
    evaluated(workspace, inputs, **asked)
    assert seen == {"predict_logits": False, "attack_accuracy": False, "corruption_accuracy": False}
    auto = tmp_path / "auto"
    shutil.copytree(inputs["model"].path, auto)
    card = load_card(auto)
    save_card(auto, card.model_copy(update={"precision": "auto"}))
    evaluated(tmp_path / "other", {**inputs, "model": replace(inputs["model"], path=auto)}, **asked)
    assert seen == {"predict_logits": True, "attack_accuracy": False, "corruption_accuracy": True}


def test_robustness_is_of_test_images_and_has_every_corruption(workspace: Path, inputs: Inputs) -> None:
    found = evaluated(workspace, inputs, corruptions=True, attacks=(0.0, 0.3), robustness_images=40)
    robustness = json.loads(found.file("robustness.json").read_text())
    assert (robustness["split"], robustness["count"]) == ("test", 40)
    assert set(robustness["corruptions"]) == set(CORRUPTIONS)
    clean, attacked = (one["accuracy"] for one in robustness["attacks"])
    assert attacked < clean
    assert found.summary["corrupted_accuracy"] < clean
    assert found.summary["attacked_accuracy"] == {"0.0": clean, "0.3": attacked}
    compared = compare_evaluations(found, found)
    assert compared["mean_corruption_error"] == pytest.approx(100)
    assert compared["difference"] == 0


def test_a_data_set_without_validation_images_is_measured_on_test_alone(workspace: Path, inputs: Inputs) -> None:
    data = DataSettings(split=SplitSettings(labels_per_class=20, validation=0))
    dataset = answer(workspace, "dataset", "selftrain.ssl_tasks.data.dataset:build_dataset", data, {})
    found = evaluated(workspace, {**inputs, "dataset": dataset})
    assert found.summary["validation_accuracy"] is None
    assert found.summary["test_accuracy"] > 0.5
    assert found.summary["temperature"] == 1
