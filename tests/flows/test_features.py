"""Runs whose teachers and students read stored features: reuse, kills, lineage, several kinds of teachers."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selftrain.flows.rounds.self_training import Pending, Summary, self_training
from selftrain.ssl_tasks.data.sources import fingerprint
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import Outcome, Request, execute
from selftrain.ssl_tasks.settings.recipe import parse_recipe
from selftrain.ssl_tasks.settings.run_config import RunConfig, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.stage_names import stage_names
from selftrain.ssl_tasks.tracking.lineage import as_tree
from selftrain.ssl_tasks.tracking.trace import store_lineage
from selftrain.ssl_tasks.trained.model import load_trained
from tests.clock import HANG
from tests.flows.tiny import command, environment, last, outcome, selftrain

LINEAR: dict[str, Any] = {"model": {"name": "small_cnn", "width": 8}, "method": {"name": "linear"}}
NETWORK: dict[str, Any] = {
    "model": {"name": "small_cnn", "width": 8},
    "train": {"steps": 20, "batch_size": 10, "unlabeled_ratio": 2, "evaluate_every": 10, "learning_rate": 0.05},
}
DATA = {"source": {"name": "digits"}, "split": {"labels_per_class": 6, "validation": 100, "test": 60}}


class Inline:
    """Every stage in this process, and what became of it."""

    def __init__(self, workspace: Path) -> None:
        self.workspace, self.outcomes = workspace, dict[str, Outcome]()

    def fingerprint(self, config: RunConfig) -> str:
        return fingerprint(config.data, self.workspace / "cache")

    def run(self, request: Request, round_number: int) -> Artifact:
        self.outcomes[request.name] = execute(request, self.workspace, RuntimeSettings(threads=1, device="cpu"))
        return self.outcomes[request.name].artifact

    def submit(self, request: Request, round_number: int) -> Pending:
        artifact = self.run(request, round_number)
        return lambda: artifact

    def corrections(self) -> Path | None:
        return None

    def hold(self, round_number: int, selection: Artifact) -> None:
        raise AssertionError("no round is held")

    def approve(self, selection: Artifact) -> None:
        raise AssertionError("no round is held")


def config_of(teacher: Any = LINEAR, *rounds: dict[str, Any], **others: Any) -> RunConfig:
    every = [{"gate": {"enabled": False}, "select": {"threshold": 0.2}, **one} for one in rounds]
    return parse_recipe({"data": DATA, "teacher": teacher, "rounds": every, **others}, Path("x.yaml")).config


def conduct(workspace: Path, config: RunConfig) -> tuple[Summary, Inline]:
    answers = Inline(workspace)
    summary = self_training(config, answers)
    assert list(answers.outcomes) == list(stage_names(config)), "plans name the stages that a run has"
    return summary, answers


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


ROUNDS = ({"student": LINEAR, "predict": {"source": "propagate"}}, {"student": LINEAR, "predict": {"source": "knn"}})


def test_a_run_on_features_learns_and_computes_them_once(workspace: Path) -> None:
    summary, answers = conduct(workspace, config_of(LINEAR, *ROUNDS))
    assert summary.rounds[0].test_accuracy is not None
    assert summary.rounds[0].test_accuracy > 0.5, "of ten digits, by features of a random network"
    computed = [name for name, one in answers.outcomes.items() if not one.reused]
    assert [name for name in computed if name.startswith("features")] == ["features"]
    again = conduct(workspace, config_of(LINEAR, *ROUNDS))
    assert again[0] == summary
    assert all(one.reused for one in again[1].outcomes.values())


def test_a_label_more_computes_no_feature_again(workspace: Path) -> None:
    conduct(workspace, config_of())
    split = {**DATA["split"], "labels_per_class": 7}  # type: ignore[dict-item]
    _, answers = conduct(workspace, config_of(data={**DATA, "split": split}))
    features = answers.outcomes["features"].artifact.summary
    assert features["shards_reused"] == features["shards"]
    assert not answers.outcomes["teacher"].reused


def test_the_lineage_leads_over_the_features_to_the_labels(workspace: Path) -> None:
    _, answers = conduct(workspace, config_of(LINEAR, *ROUNDS))
    student = answers.outcomes["student-1"].artifact
    graph = store_lineage(Store(workspace / "store"), student)
    kinds = {node.kind for node in graph.nodes.values()}
    assert {"features", "dataset", "model", "predictions", "selection", "labels"} <= kinds
    assert "features: features" in as_tree(graph)


def test_neighbours_of_a_trained_teacher_are_found_by_its_own_features(workspace: Path) -> None:
    config = config_of(NETWORK, {"student": NETWORK, "predict": {"source": "propagate"}})
    _, answers = conduct(workspace, config)
    features = answers.outcomes["teacher-features-1"].artifact
    assert features.manifest["inputs"]["init"]["digest"] == answers.outcomes["teacher"].artifact.digest
    assert answers.outcomes["predict-1"].artifact.manifest["inputs"]["features"]["digest"] == features.digest


def test_teachers_of_several_kinds_are_calibrated_and_averaged(workspace: Path) -> None:
    config = config_of([LINEAR, NETWORK], {"student": NETWORK})
    assert [one.method.name for one in config.teachers] == ["linear", "supervised"]
    _, answers = conduct(workspace, config)
    predictions = answers.outcomes["predict-1"].artifact
    assert predictions.manifest["settings"]["temperature"] == "each"
    assert {"model", "model_2", "features"} <= set(predictions.manifest["inputs"])
    agreement = json_column(predictions, "view_agreement")
    assert set(np.unique(agreement)) <= {0.0, 0.5, 1.0}
    assert len(np.unique(agreement)) > 1


def json_column(predictions: Artifact, name: str) -> np.ndarray:
    import pandas as pd

    return pd.concat([pd.read_parquet(path) for path in sorted(predictions.path.glob("shards/*"))])[name].to_numpy()


def test_a_tuned_student_begins_with_the_linear_head(workspace: Path) -> None:
    still = {**NETWORK, "train": {**NETWORK["train"], "steps": 1, "learning_rate": 1e-9, "ema_decay": 0.0}}
    config = config_of(LINEAR, {"student": {**still, "init": "teacher"}})
    _, answers = conduct(workspace, config)
    teacher, student = (
        load_trained(answers.outcomes[name].artifact.path, "cpu").network.head.weight
        for name in ("teacher", "student-1")
    )
    assert torch.allclose(teacher, student, atol=1e-4)


def test_a_backbone_can_be_pretrained_on_all_images(workspace: Path) -> None:
    pretrain = {**NETWORK, "method": {"name": "simclr"}, "augment": {"strong": "simclr"}}
    _, answers = conduct(workspace, config_of(pretrain=pretrain))
    features = answers.outcomes["features"].artifact
    assert features.manifest["inputs"]["init"]["digest"] == answers.outcomes["pretrain"].artifact.digest


def test_random_weights_are_allowed_with_a_warning(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    conduct(workspace, config_of())
    assert "small_cnn 8 has no pretrained weights" in caplog.text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"teacher": {**LINEAR, "members": 2}}, "members is 2, and models of method linear do not depend on a seed"),
        ({"teacher": []}, "found an empty list"),
        ({"teacher": [LINEAR, NETWORK], "given_teacher": "elsewhere"}, "leave other_teachers out"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_recipe({"data": DATA, **changes}, Path("x.yaml"))


RECIPE = {
    "name": "features",
    "data": DATA,
    "teacher": {**LINEAR, "model": {"name": "wrn-10-1"}},
    "features": {"shard_size": 100, "batch_size": 16},
    "rounds": [{**ROUNDS[0], "gate": {"enabled": False}, "select": {"threshold": 0.2}}],
    "runtime": {"threads": 1},
}


@pytest.mark.slow
def test_killed_between_shards_it_ends_as_if_nothing_had_been(fresh: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "features.yaml"
    recipe.write_text(json.dumps(RECIPE))
    words = command(fresh, "run", str(recipe), "--no-prefect")
    run = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + HANG
    while len(list(fresh.glob("cache/shards/*/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    kept = set(fresh.glob("cache/shards/*/*.parquet"))
    times = {path: path.stat().st_mtime_ns for path in kept}
    ended = selftrain(fresh, "run", str(recipe), "--no-prefect")
    assert ended.returncode == 0, ended.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == times, "finished shards are not computed again"
    assert last(fresh).artifact("features").summary["shards_reused"] >= 3  # type: ignore[union-attr]
    undisturbed = tmp_path / "undisturbed"
    assert selftrain(undisturbed, "run", str(recipe), "--no-prefect").returncode == 0
    assert outcome(last(fresh)) == outcome(last(undisturbed))
