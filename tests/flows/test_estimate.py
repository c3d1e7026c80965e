"""`selftrain plan --estimate`: which stages it measures, how it counts, and that a run then costs about as much."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from selftrain.flows.rounds.planning import Estimate
from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.store.stage_names import stage_names
from tests.flows.tiny import last, selftrain

WHOLE = "data.split.validation=200", "data.split.test=500"  # so few unlabelled images that a sample has all of them
NETWORK = {"name": "small_cnn", "width": 8}
STEPS = {"steps": 60, "batch_size": 8, "unlabeled_ratio": 2, "evaluate_every": 20}


def answer(workspace: Path, recipe: str, *overrides: str) -> dict[str, Any]:
    """The JSON of `selftrain plan --estimate`."""
    sets = [word for one in overrides for word in ("--set", one)]
    done = selftrain(workspace, "plan", recipe, "--estimate", "--json", *sets)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def estimates(workspace: Path, recipe: str, *overrides: str) -> dict[str, Any]:
    """The estimate of every stage, by name."""
    return {stage["name"]: stage["estimate"] for stage in answer(workspace, recipe, *overrides)["stages"]}


def written(folder: Path, values: dict[str, Any]) -> str:
    """A recipe as a file; JSON is YAML."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"runtime": {"threads": 1}, **values}))
    return str(path)


def test_every_stage_has_an_estimate_and_the_store_stays_empty(tmp_path: Path, recipe: str) -> None:
    found = estimates(tmp_path, recipe, *WHOLE, "teacher.train.patience=3")
    assert list(found) == list(stage_names(load_recipe(recipe).config))
    for name, one in found.items():
        assert one["seconds"] > 0
        assert one["disk_bytes"] > 0
        assert one["memory_bytes"] > 100e6, "torch alone needs that much"
        assert one["gpu_memory_bytes"] is None
        assert one["notes"] == (["train.patience may end the training earlier"] if name == "teacher" else [])
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "runs").exists()
    assert list((tmp_path / "cache" / "estimates").iterdir()) == []


def test_stages_that_are_reused_cost_nothing(copy: Path, recipe: str) -> None:
    before = {str(path) for path in (copy / "store").rglob("*")}
    found = answer(copy, recipe, "rounds.2.select.threshold=0.2")
    reused = {stage["name"] for stage in found["stages"] if stage["action"] == "reuse"}
    assert {"dataset", "teacher", "student-1", "predict-2"} <= reused
    assert {stage["name"] for stage in found["stages"] if stage["estimate"] is None} == reused
    measured = [stage["estimate"] for stage in found["stages"] if stage["estimate"]]
    assert found["total"]["seconds"] == pytest.approx(sum(one["seconds"] for one in measured))
    assert found["total"]["memory_bytes"] == max(one["memory_bytes"] for one in measured)
    assert found["total"]["disk_bytes"] == sum(one["disk_bytes"] for one in measured)
    assert {str(path) for path in (copy / "store").rglob("*")} == before
    assert answer(copy, recipe)["total"] == asdict(Estimate(0, 0, 0)) | {"notes": []}


def test_the_command_prints_a_table_with_a_total(tmp_path: Path, recipe: str) -> None:
    words = ["plan", recipe, "--estimate", "--set", "rounds=[]", "--set", "teacher.train.steps=2000000"]
    shown = selftrain(tmp_path, *words)
    assert shown.returncode == 0, shown.stderr
    lines = [line.rstrip() for line in shown.stdout.splitlines()]
    assert lines[0].split() == ["stage", "time", "memory", "disk", "key", "why"]
    assert [line.split()[0] for line in lines[1:5]] == ["dataset", "teacher", "evaluate-teacher", "total"]
    assert lines[4].endswith("if every stage runs to its end")
    assert lines[5].startswith("checkpoints need ")
    assert lines[2].split()[2].count(":") == 2, "two million steps take hours"
    plain = json.loads(selftrain(tmp_path, "plan", recipe, "--json").stdout)
    assert list(plain["stages"][0]) == ["name", "action", "key", "why"]


@pytest.mark.slow
def test_every_kind_of_stage_is_measured(tmp_path: Path) -> None:
    student = {"model": NETWORK, "train": STEPS}
    values = {
        "data": {"source": {"name": "digits"}, "split": {"labels_per_class": 6, "validation": 60, "test": 60}},
        "teacher": {"model": NETWORK, "method": {"name": "linear"}},
        "evaluate": {"attacks": [0.03], "robustness_images": 20},
        "rounds": [
            {"predict": {"source": "propagate"}, "student": {**student, "method": {"name": "fixmatch"}}},
            {
                "student": {**student, "init": "teacher", "members": 2},
                "finetune": {"image_size": 12, "train": {"steps": 20}},
            },
        ],
    }
    recipe = written(tmp_path, values)
    found = estimates(tmp_path / "workspace", recipe)
    assert list(found) == list(stage_names(load_recipe(recipe).config))
    assert [name for name, one in found.items() if one is None or one["seconds"] <= 0] == []
    first, second = found["student-2"], found["student-2-member-2"]
    assert first == second, "members of an ensemble cost the same"


@pytest.mark.slow
def test_a_large_data_set_is_measured_on_a_sample(tmp_path: Path) -> None:
    source = {"name": "synthetic", "size": 30_000, "test_size": 50, "classes": 4, "image_size": 8}
    values = {
        "data": {"source": source, "split": {"labels_per_class": 5, "validation": 50}},
        "teacher": {"model": NETWORK, "train": STEPS},
        "rounds": [{"student": {"model": NETWORK, "train": STEPS}}],
    }
    recipe = written(tmp_path, values)
    found = estimates(tmp_path / "workspace", recipe)
    carried = {name for name, one in found.items() if one["notes"]}
    assert carried == {"dataset", "predict-1", "select-1"}, "the others do not look at every unlabelled image"
    done = selftrain(tmp_path / "workspace", "run", recipe, "--no-prefect")
    assert done.returncode == 0, done.stderr
    for name in ("dataset", "predict-1"):
        artifact = last(tmp_path / "workspace").artifact(name)
        assert artifact is not None
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
        assert found[name]["disk_bytes"] == pytest.approx(size, rel=0.25), name


def test_weights_that_a_run_would_fetch_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    model = {"name": "torchvision:squeezenet1_1", "pretrained": True}
    values = {
        "data": {"source": {"name": "digits"}, "split": {"labels_per_class": 5}, "image_size": 32, "channels": 3},
        "teacher": {"model": model, "train": {**STEPS, "tune": "head"}},
    }
    recipe = written(tmp_path, values)
    shown = selftrain(tmp_path / "workspace", "plan", recipe, "--estimate")
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("weights-teacher ")]
    assert line.split()[2:5] == ["unknown"] * 3
    assert "weights-teacher: fetched by the run and not counted" in shown.stdout
    assert not (tmp_path / "torch").exists()


def test_an_estimate_says_that_it_measures_one_process_of_several(tmp_path: Path, recipe: str) -> None:
    (note,) = estimates(tmp_path, recipe, *WHOLE, "rounds=[]", "runtime.processes=2")["teacher"]["notes"]
    assert note.startswith("measured in one process of 2")


def test_data_that_cannot_be_used_is_refused_as_in_a_run(tmp_path: Path, recipe: str) -> None:
    words = ["plan", recipe, "--estimate", "--set", "data.split.validation=0", "--set", "teacher.train.patience=1"]
    refused = selftrain(tmp_path, *words)
    assert refused.returncode == 2
    assert "the data has no validation images" in refused.stderr


@pytest.mark.long
def test_a_run_takes_about_as_long_and_as_much_disk_as_its_estimate(tmp_path: Path, recipe: str) -> None:
    longer = ["teacher.train.steps=600", "rounds.1.student.train.steps=600"]
    planned = answer(tmp_path, recipe, *longer)
    sets = [word for one in longer for word in ("--set", one)]
    assert selftrain(tmp_path, "run", recipe, "--no-prefect", *sets).returncode == 0
    run = last(tmp_path)
    seconds = {stage.name: stage.seconds for stage in run.stages()}
    whole, taken = planned["total"]["seconds"], sum(seconds.values())
    assert taken / 2.5 < whole < taken * 2.5
    for stage in planned["stages"]:
        artifact = run.artifact(stage["name"])
        assert artifact is not None
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
        assert stage["estimate"]["disk_bytes"] >= size / 1.5, stage["name"]
