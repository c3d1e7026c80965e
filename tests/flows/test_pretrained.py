"""A run whose networks start from pretrained weights: its stages, their reuse, and what ends it before it trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from selftrain.flows.rounds.conductor import Conductor
from selftrain.flows.rounds.planning import plan
from selftrain.flows.rounds.self_training import self_training
from selftrain.models import ModelSettings, build_model
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.recipe import load_recipe, parse_recipe
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run
from selftrain.ssl_tasks.store.stage_names import stage_names
from selftrain.ssl_tasks.trained.model import load_trained
from tests.flows.tiny import states

NAME = "wrn-10-1"
STEPS = {"steps": 3, "batch_size": 8, "unlabeled_ratio": 2, "evaluate_every": 3}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "given.safetensors"
    save_file(build_model(ModelSettings(name=NAME), 3, 1, 8).body.state_dict(), path)
    return path


def config_of(file: Path, **student: Any) -> RunConfig:
    """A teacher whose head is trained, and a student that starts from it with low-rank additions."""
    model = {"name": NAME, "pretrained": str(file)}
    raw = {
        "data": {"source": {"name": "digits"}, "split": {"labels_per_class": 5, "validation": 60, "test": 60}},
        "teacher": {"model": model, "train": {**STEPS, "tune": "head"}},
        "rounds": [
            {
                "select": {"threshold": 0.01},
                "gate": {"enabled": False},
                "student": {"model": model, "init": "teacher", "train": {**STEPS, "tune": "lora"}, **student},
            }
        ],
        "runtime": {"threads": 1, "device": "cpu"},
    }
    return parse_recipe(raw, Path("pretrained.yaml")).config


def conduct(workspace: Path, config: RunConfig) -> Run:
    run = Run.create(workspace, config)
    conductor = Conductor(config, workspace, run)
    try:
        self_training(config, conductor)
    finally:
        conductor.close()
    return run


def test_a_run_keeps_the_weights_checks_every_network_and_computes_nothing_twice(tmp_path: Path, file: Path) -> None:
    workspace, config = tmp_path / "workspace", config_of(file)
    first = conduct(workspace, config)
    names = [stage.name for stage in first.stages()]
    assert names == list(stage_names(config))
    assert names[1:5] == ["weights-teacher", "check-teacher", "check-student-1", "teacher"]
    assert set(states(conduct(workspace, config)).values()) == {"reused"}
    assert {stage.action for stage in plan(config, workspace)} == {"reuse"}
    student = first.artifact("student-1")
    assert student is not None
    images = np.zeros((1, 8, 8, 1), np.uint8)
    assert load_trained(student.path, "cpu").logits(images).shape == (1, 10)


def test_a_student_that_does_not_fit_ends_the_run_before_its_teacher_is_trained(tmp_path: Path, file: Path) -> None:
    config = config_of(file, init="scratch", model={"name": "wrn-16-1", "pretrained": str(file)})
    with pytest.raises(ConfigError, match="does not fit this network"):
        conduct(tmp_path / "workspace", config)
    assert not (tmp_path / "workspace" / "store" / "train").exists()


def test_a_relative_path_starts_from_the_recipes_folder(tmp_path: Path, file: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{source: {{name: digits}}}}\nteacher: {{model: {{name: {NAME}, pretrained: {file.name}}}}}\n"
    )
    assert load_recipe(recipe).config.teacher.model.pretrained == str(file)
