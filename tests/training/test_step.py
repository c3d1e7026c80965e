"""One step: micro-batches, clipping, own steps, and which random numbers are drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.methods.base import Losses, Method, Problem
from selftrain.ssl_tasks.methods.table import METHODS
from selftrain.ssl_tasks.settings.methods import SupervisedSettings
from selftrain.ssl_tasks.settings.run_config import LearnerSettings
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.training.loop import micro_batch, seed_step, take_step
from selftrain.ssl_tasks.training.run import TrainingRun, build_run, refuse_what_methods_ignore
from tests.training.small_runs import learner, train_in, weights_of


def run_of(section: LearnerSettings, dataset: Artifact, cache: Path) -> TrainingRun:
    return build_run(section, Dataset.open(dataset, cache), 0, torch.device("cpu"))


@pytest.mark.parametrize(
    "method", [{"name": "supervised", "label_smoothing": 0.1}, {"name": "fixmatch", "threshold": 0.1}]
)
def test_micro_batches_make_the_whole_batch(tmp_path: Path, dataset: Artifact, method: dict[str, Any]) -> None:
    whole = train_in(tmp_path, learner(method, accumulate=1), {"dataset": dataset})
    parts = train_in(tmp_path, learner(method, accumulate=4), {"dataset": dataset})
    theirs = weights_of(parts)
    for name, value in weights_of(whole).items():
        assert value == pytest.approx(theirs[name], abs=1e-6), name


def test_micro_batches_hold_every_image_once(tmp_path: Path, dataset: Artifact) -> None:
    batch = next(run_of(learner({"name": "fixmatch"}), dataset, tmp_path).batches(0))
    parts = [micro_batch(batch, number, 4) for number in range(4)]
    assert torch.cat([part.unlabeled_index for part in parts]).equal(batch.unlabeled_index)
    assert torch.cat([part.unlabeled[1] for part in parts]).equal(batch.unlabeled[1])
    assert [len(part.labels) for part in parts] == [2, 2, 2, 2]


def test_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValidationError, match="batch_size 10 cannot be split into 4 equal micro-batches"):
        TrainSettings(batch_size=10, accumulate=4)


def test_clipping_bounds_the_gradient(tmp_path: Path, dataset: Artifact) -> None:
    run = run_of(learner(clip_gradient=1e-3, weight_decay=0), dataset, tmp_path)
    take_step(run, next(run.batches(0)))
    norm = torch.cat(
        [parameter.grad.flatten() for parameter in run.state.parameters if parameter.grad is not None]
    ).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_random_numbers_depend_on_seed_step_and_purpose() -> None:
    def draw(*arguments: Any) -> float:
        seed_step(*arguments)
        return torch.rand(()).item()

    assert draw(0, 5) == draw(0, 5)
    assert len({draw(0, 5), draw(0, 6), draw(1, 5), draw(0, 5, "refresh")}) == 4


def test_parameters_of_the_method_are_optimised(
    tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(Method):
        def __init__(self, settings: Any, problem: Problem) -> None:
            super().__init__(settings, problem)
            self.scale = torch.nn.Parameter(torch.ones(()))

        def loss(self, student: Any, batch: Any, progress: float) -> Losses:
            return Losses(torch.nn.functional.cross_entropy(self.scale * student(batch.labeled[0]), batch.labels))

    monkeypatch.setitem(METHODS, "supervised", Scaled)
    run = run_of(learner(), dataset, tmp_path)
    take_step(run, next(run.batches(0)))
    assert isinstance(run.state.method, Scaled)
    assert run.state.method.scale.item() != 1


def test_settings_that_an_own_step_would_ignore_are_refused() -> None:
    class Own(Method):
        def train_step(self) -> None:
            """Steps by itself."""

    method = Own(SupervisedSettings(), Problem(2, 1, 1, 1, 1, 1, (0.5, 0.5)))
    refuse_what_methods_ignore(method, TrainSettings())
    with pytest.raises(ConfigError, match=r"train\.clip_gradient is 1"):
        refuse_what_methods_ignore(method, TrainSettings(clip_gradient=1.0))


def test_an_own_steps_second_look_sees_the_weights_after_its_first_step_in_bf16_too(
    tmp_path: Path, dataset: Artifact
) -> None:
    settings = {"name": "meta_pseudo_labels", "student_wait": 0.0, "finetune": 0.0}
    found = []
    for precision in ("fp32", "bf16"):
        run = run_of(learner(settings, learning_rate=0.05, precision=precision), dataset, tmp_path)
        batches = run.batches(0)
        feedback = []
        for _ in range(6):
            take_step(run, next(batches))
            feedback.append(run.state.meter.read()["feedback"])
            run.state.meter.clear()
        found.append(feedback)
    assert max(map(abs, found[0])) > 0.02
    assert found[1] == pytest.approx(found[0], rel=0.1, abs=3e-3)


def test_average_follows_the_warmed_up_decay(tmp_path: Path, dataset: Artifact) -> None:
    run = run_of(learner(learning_rate=0.5), dataset, tmp_path)
    first = [parameter.detach().clone() for parameter in run.state.student.parameters()]
    take_step(run, next(run.batches(0)))
    for before, now, mean in zip(first, run.state.student.parameters(), run.state.average.parameters(), strict=True):
        torch.testing.assert_close(mean, (before + now) / 2)


def test_evaluating_more_often_changes_nothing_but_the_history(tmp_path: Path, dataset: Artifact) -> None:
    section = learner(
        {"name": "mean_teacher", "weight": 5.0}, {"name": "small_cnn", "width": 4, "dropout": 0.2}, keep="last"
    )
    often = replace_train(section, evaluate_every=1)
    one, two = (train_in(tmp_path, one, {"dataset": dataset}) for one in (section, often))
    assert one.file("model.safetensors").read_bytes() == two.file("model.safetensors").read_bytes()


def replace_train(section: LearnerSettings, **train: Any) -> LearnerSettings:
    return section.model_copy(update={"train": section.train.model_copy(update=train)})
