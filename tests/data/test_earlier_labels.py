"""A person who gives a teacher that knows labels of the held-out images is told."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from selftrain.flows.rounds.self_training import _first_teachers
from selftrain.ssl_tasks.data.splits import earlier_labels, warn_of_earlier_labels
from selftrain.ssl_tasks.settings.recipe import parse_recipe
from selftrain.ssl_tasks.store.artifacts import Artifact
from tests.training.small_runs import digits

WRITTEN = {"stage": "train", "key": "k", "digest": "d", "files": {}, "settings": {}, "seconds": 0.0, "finished": 0.0}


def model_of(workspace: Path, dataset: Artifact) -> Path:
    """A model in the store, as far as it says what it was trained on."""
    made = {"stage": "dataset", "key": dataset.key, "digest": dataset.digest}
    folder = workspace / "store" / "train" / "k"
    folder.mkdir(parents=True)
    (folder / "artifact.json").write_text(json.dumps({**WRITTEN, "inputs": {"dataset": made}}))
    return folder


def in_split(dataset: Artifact, name: str) -> set[str]:
    return set(pq.read_table(dataset.file("manifest.parquet"), filters=[("split", "==", name)])["content"].to_pylist())


def test_the_labels_that_a_model_learned_before_the_split_changed_are_counted(tmp_path: Path) -> None:
    earlier, now = digits(tmp_path, labels_per_class=50), digits(tmp_path, labels_per_class=50, seed=1)
    learned = in_split(earlier, "labeled")
    expected = {name: len(learned & in_split(now, name)) for name in ("validation", "test")}
    assert min(expected.values()) > 0
    model = model_of(tmp_path, earlier)
    assert earlier_labels(model, now) == expected
    assert earlier_labels(model, earlier) == {}
    assert earlier_labels(model, digits(tmp_path, labels_per_class=5)) == {}


def test_a_run_with_such_a_teacher_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier, now = digits(tmp_path, labels_per_class=50), digits(tmp_path, labels_per_class=50, seed=1)
    model = model_of(tmp_path, earlier)
    for name in ("model.safetensors", "model.json"):
        (model / name).write_text("{}")

    class Answers:
        def run(self, *_: Any) -> Artifact:
            return earlier

    config = parse_recipe({"given_teacher": str(model)}, tmp_path / "given.yaml").config
    _first_teachers(config, now, Answers(), {})  # type: ignore[arg-type]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "selftrain"]
    assert str(model) in line
    assert "test images" in line


def test_a_model_from_elsewhere_is_taken_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = digits(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    warn_of_earlier_labels(tmp_path / "elsewhere", dataset)
    model = model_of(tmp_path / "another", dataset)  # a copy: the data set is in no store beside it
    warn_of_earlier_labels(model, dataset)
    assert not caplog.records
