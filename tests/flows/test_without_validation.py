"""The papers' protocol: no validation images, the last weights, the median test accuracy of the last evaluations."""

import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from selftrain.flows.cli.running import show_summary
from selftrain.flows.rounds.self_training import Pending, Summary, self_training
from selftrain.ssl_tasks.data.sources import fingerprint
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.recipe import parse_recipe
from selftrain.ssl_tasks.settings.run_config import RunConfig, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

LEARNER = {
    "model": {"name": "mlp", "width": 16},
    "train": {"steps": 20, "batch_size": 8, "unlabeled_ratio": 2, "evaluate_every": 5, "learning_rate": 0.1},
}


class Inline:
    """Every stage in this process, and what was asked for."""

    def __init__(self, workspace: Path) -> None:
        self.workspace, self.artifacts = workspace, dict[str, Artifact]()

    def fingerprint(self, config: RunConfig) -> str:
        return fingerprint(config.data, self.workspace / "cache")

    def run(self, request: Request, round_number: int) -> Artifact:
        found = execute(request, self.workspace, RuntimeSettings(threads=1, device="cpu")).artifact
        self.artifacts[request.name] = found
        return found

    def submit(self, request: Request, round_number: int) -> Pending:
        found = self.run(request, round_number)
        return lambda: found

    def corrections(self) -> None:
        return None

    def hold(self, round_number: int, selection: Artifact) -> None:
        raise AssertionError("nothing holds here")

    approve = hold  # type: ignore[assignment]


def recipe(validation: int = 0, **sections: Any) -> RunConfig:
    """A teacher and a round of students."""
    raw = {
        "data": {"split": {"labels_per_class": 4, "validation": validation, "test": 60}},
        "teacher": LEARNER,
        "rounds": 1,
        "round": {"select": {"threshold": 0.1}, "student": LEARNER},
    }
    return parse_recipe({**raw, **sections}, Path("papers.yaml")).config


@pytest.mark.parametrize(
    ("sections", "setting"),
    [
        ({"round": {"predict": {"temperature": "fit"}}}, "rounds.0.predict.temperature: fit"),
        ({"round": {"select": {"target_precision": 0.9}}}, "rounds.0.select.target_precision: 0.9"),
        ({"round": {"gate": {"require_gain": True}}}, "rounds.0.gate.require_gain: true"),
        ({"teacher": {"train": {"patience": 3}}}, "teacher.train.patience: 3"),
        ({"round": {"student": {"train": {"patience": 2}}}}, "rounds.0.student.train.patience: 2"),
        ({"pretrain": {"method": {"name": "simclr"}, "train": {"patience": 4}}}, "pretrain.train.patience: 4"),
        (
            {"round": {"finetune": {"image_size": 16, "train": {"patience": 5}}, "student": {"model": {"width": 8}}}},
            "rounds.0.finetune.train.patience: 5",
        ),
    ],
)
def test_a_setting_that_needs_validation_images_is_refused_before_anything_is_trained(
    tmp_path: Path, sections: dict[str, Any], setting: str
) -> None:
    answers = Inline(tmp_path)
    with pytest.raises(ConfigError) as caught:
        self_training(recipe(**sections), answers)
    assert str(caught.value) == (
        f"the data has no validation images, and these settings need them: {setting}. "
        "Set data.split.validation, or leave it at the default"
    )
    assert list(answers.artifacts) == ["dataset"]


def test_a_run_without_validation_goes_through_all_stages_and_reports_the_median_on_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {**LEARNER, "train": {**LEARNER["train"], "keep": "last", "median_of": 3}}
    answers = Inline(tmp_path)
    config = recipe(teacher=printed, round={"select": {"threshold": 0.1}, "student": printed})
    summary = self_training(config, answers)
    assert (summary.stopped, summary.best_round) == ("1 round done", 1)
    assert "no validation images to compare on" in answers.artifacts["gate-1"].summary["reason"]
    for line, name in zip(summary.rounds, ("teacher", "student-1"), strict=True):
        history = pd.read_parquet(answers.artifacts[name].file("history.parquet")).dropna(subset=["test_accuracy"])
        assert history["step"].tolist() == [10, 15, 20]
        assert line.median_test_accuracy == statistics.median(history["test_accuracy"])
        assert line.test_accuracy == history["test_accuracy"].iloc[-1], "the last weights are what is evaluated"
        assert (line.validation_accuracy, line.median_validation_accuracy) == (None, None)
    assert "median test" in table_of(summary, capsys)
    assert "median validation" not in table_of(summary, capsys)
    assert "median" not in table_of(self_training(recipe(), answers), capsys)


def table_of(summary: Summary, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the table that is printed at the end of such a run."""

    run = SimpleNamespace(id="papers-1", summary={**summary.as_json(), "nothing_new": True})
    capsys.readouterr()
    show_summary(run, as_json=False)  # type: ignore[arg-type]
    return capsys.readouterr().out
