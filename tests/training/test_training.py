"""The stage as a whole: what it writes, when it stops, what it refuses."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from selftrain.flows.rounds.stages import train_request
from selftrain.models import ModelSettings, build_model
from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import ConfigError, Interrupted, OutOfMemory, TrainingDiverged
from selftrain.ssl_tasks.execution.devices import computed_by
from selftrain.ssl_tasks.methods.base import Losses
from selftrain.ssl_tasks.methods.supervised import Supervised
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.model import load_trained
from selftrain.ssl_tasks.training import loop
from selftrain.ssl_tasks.training import loop as training_loop
from selftrain.ssl_tasks.training.checkpoints import checkpoint_files
from selftrain.ssl_tasks.training.run import TrainingRun, build_run
from tests.clock import HANG, until
from tests.training.small_runs import digits, folder_of, history_of, learner, train_apart, train_in, weights_of


@pytest.mark.parametrize(("method", "name"), [("meta_pseudo_labels", "teacher"), ("dividemix", "second")])
def test_a_twin_from_scratch_is_untrained_where_the_student_is_not(
    tmp_path: Path, dataset: Artifact, method: str, name: str
) -> None:
    model, weights = {"name": "small_cnn", "width": 4}, tmp_path / "weights.safetensors"
    given = {key: value + 5 for key, value in build_model(ModelSettings(**model), 10, 1, 8).state_dict().items()}
    save_file(given, weights)
    data, cpu, twins = Dataset.open(dataset, tmp_path / "cache"), torch.device("cpu"), []
    for student, first in (({}, None), ({}, given), ({"pretrained": weights}, None)):
        run = build_run(learner({"name": method}, {**model, **student}), data, 0, cpu, weights=first)
        twins.append(getattr(run.state.method, name).state_dict())
        assert all(parameter.requires_grad for parameter in run.state.method.parameters())
    others = run.state.student.state_dict()
    assert all(torch.equal(others[key], value) for key, value in given.items())
    for key, value in twins[0].items():
        assert torch.equal(value, twins[1][key])
        assert torch.equal(value, twins[2][key])
        assert not torch.equal(value, others[key])


def test_a_model_learns_and_its_files_agree(tmp_path: Path, dataset: Artifact) -> None:
    model = train_in(tmp_path, learner(steps=200, evaluate_every=50, learning_rate=0.1), {"dataset": dataset})
    metrics = json.loads(model.file("metrics.json").read_text())
    history = history_of(model)
    assert metrics["validation_accuracy"] > 0.5
    assert history["step"].tolist() == sorted({*range(4, 201, 4), 50, 150})
    scores = history.set_index("step")["validation_accuracy"].dropna()
    assert scores.index.tolist() == [50, 100, 150, 200]
    assert metrics["best"]["accuracy"] == scores.max()
    pool = Dataset.open(dataset, tmp_path / "cache").pool("validation")
    logits = load_trained(model.path, "cpu").logits(pool.images(np.arange(len(pool))))
    accuracy = (logits.argmax(1).numpy() == pool.labels).mean()
    assert accuracy == pytest.approx(metrics["validation_accuracy"])
    assert model.summary["computed_by"] == computed_by(torch.device("cpu"), torch.float32)


def test_same_settings_make_the_same_bytes(tmp_path: Path, dataset: Artifact) -> None:
    one, two = (train_in(tmp_path / name, learner(), {"dataset": dataset}) for name in ("one", "two"))
    assert one.digest == two.digest


def test_another_seed_makes_another_model(tmp_path: Path, dataset: Artifact) -> None:
    one, two = (train_in(tmp_path, learner(), {"dataset": dataset}, seed=seed) for seed in (0, 1))
    assert one.digest != two.digest


def test_training_opens_no_test_images(tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    pool = Dataset.pool

    def noted(self: Dataset, name: Any) -> Any:
        opened.append(name)
        return pool(self, name)

    monkeypatch.setattr(Dataset, "pool", noted)
    train_in(tmp_path, learner({"name": "fixmatch"}), {"dataset": dataset})
    assert set(opened) == {"labeled", "unlabeled", "validation"}


def test_scrambled_truth_changes_no_weight_and_no_choice(tmp_path: Path, dataset: Artifact) -> None:
    section = learner({"name": "fixmatch", "threshold": 0.3}, steps=48, learning_rate=0.1)
    lied_to = Artifact(
        Path(shutil.copytree(dataset.path.parents[2], tmp_path / "copy")) / told(dataset), dataset.manifest
    )
    truth = pd.read_parquet(lied_to.file("truth.parquet"))
    truth.assign(label=(truth["label"] + 1) % 10).to_parquet(lied_to.file("truth.parquet"), index=False)
    one, two = (train_in(tmp_path / name, section, {"dataset": it}) for name, it in (("a", dataset), ("b", lied_to)))
    for name in ("model.safetensors", "last.safetensors", "metrics.json"):
        assert one.file(name).read_bytes() == two.file(name).read_bytes()
    histories = [history_of(model) for model in (one, two)]
    audit = ["pseudo_accuracy"]  # what the truth is for: to be told how right the pseudo-labels are
    assert histories[0][audit].sum().item() != histories[1][audit].sum().item()
    pd.testing.assert_frame_equal(*(history.drop(columns=audit) for history in histories))


def told(dataset: Artifact) -> Path:
    """Returns the path of an artifact in its workspace."""
    return dataset.path.relative_to(dataset.path.parents[2])


def test_best_on_validation_becomes_the_model_and_the_last_is_beside_it(
    tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rise_and_fall(run: TrainingRun) -> dict[str, float]:
        return {"validation_accuracy": {8: 0.5, 16: 0.7, 24: 0.6}[run.state.step], "validation_loss": 1.0}

    monkeypatch.setattr(loop, "validate", rise_and_fall)
    best = train_in(tmp_path, learner(schedule="constant"), {"dataset": dataset})
    last = train_in(tmp_path, learner(schedule="constant", keep="last"), {"dataset": dataset})
    until_best = train_in(tmp_path, learner(schedule="constant", keep="last", steps=16), {"dataset": dataset})
    metrics = json.loads(best.file("metrics.json").read_text())
    assert (metrics["best"]["step"], metrics["last"]["step"]) == (16, 24)
    assert (metrics["validation_accuracy"], metrics["last"]["accuracy"]) == (0.7, 0.6)
    assert best.file("last.safetensors").read_bytes() == last.file("model.safetensors").read_bytes()
    assert best.file("model.safetensors").read_bytes() == until_best.file("model.safetensors").read_bytes()


def test_patience_ends_a_run_without_improvement(tmp_path: Path, dataset: Artifact) -> None:
    section = learner(steps=200, evaluate_every=4, patience=3, learning_rate=1e-12, ema_decay=0)
    model = train_in(tmp_path, section, {"dataset": dataset})
    metrics = json.loads(model.file("metrics.json").read_text())
    assert (metrics["stopped"], metrics["steps"]) == ("patience", metrics["best"]["step"] + 3 * 4)


def test_without_validation_images_the_last_is_kept(tmp_path: Path) -> None:
    model = train_in(tmp_path, learner(patience=1), {"dataset": digits(tmp_path, validation=0)})
    metrics = json.loads(model.file("metrics.json").read_text())
    assert (metrics["kept"], metrics["best"], metrics["last"], metrics["steps"]) == ("last", None, None, 24)


def test_the_median_of_the_last_evaluations_is_reported_and_chooses_nothing(tmp_path: Path, dataset: Artifact) -> None:
    usual = train_in(tmp_path, learner(evaluate_every=5), {"dataset": dataset})
    model = train_in(tmp_path, learner(evaluate_every=5, median_of=3), {"dataset": dataset})
    assert model.file("model.safetensors").read_bytes() == usual.file("model.safetensors").read_bytes()
    history = history_of(model)
    tested = history.dropna(subset=["test_accuracy"])
    assert tested["step"].tolist() == [15, 20, 24], "the last three of 5, 10, 15, 20 and 24"
    metrics, plain = (json.loads(one.file("metrics.json").read_text()) for one in (model, usual))
    assert metrics == {
        **plain,
        "median_of": 3,
        "median_validation_accuracy": tested["validation_accuracy"].median(),
        "median_test_accuracy": tested["test_accuracy"].median(),
    }
    trained = load_trained(model.path, "cpu")
    trained.network.load_state_dict(load_file(model.file("last.safetensors")))
    pool = Dataset.open(dataset, tmp_path / "cache").pool("test")
    right = trained.logits(pool.images(np.arange(len(pool)))).argmax(1).numpy() == pool.labels
    assert tested["test_accuracy"].iloc[-1] == pytest.approx(right.mean(), abs=1e-12)


def test_fewer_evaluations_than_the_median_wants_are_all_of_them_and_counted(tmp_path: Path, dataset: Artifact) -> None:
    model = train_in(tmp_path, learner(median_of=20), {"dataset": dataset})
    assert model.summary["median_of"] == 3
    assert model.summary["median_validation_accuracy"] == history_of(model)["validation_accuracy"].median()


def test_a_median_is_the_same_after_a_stop(tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    section = learner(evaluate_every=4, median_of=4)
    whole = train_in(tmp_path / "whole", section, {"dataset": dataset})
    honest, seen = Supervised.loss, [0]

    def loss(self: Supervised, *arguments: Any) -> Losses:
        seen[0] += 1
        if seen[0] == 18:  # after two of the four evaluations
            os.kill(os.getpid(), signal.SIGINT)
        return honest(self, *arguments)

    monkeypatch.setattr(Supervised, "loss", loss)
    with pytest.raises(Interrupted, match="at step 18"):
        train_in(tmp_path / "stopped", section, {"dataset": dataset})
    resumed = train_in(tmp_path / "stopped", section, {"dataset": dataset})
    assert resumed.digest == whole.digest
    assert resumed.summary["median_test_accuracy"] == whole.summary["median_test_accuracy"]


def test_training_depends_on_the_test_images_only_where_their_median_is_asked_for(dataset: Artifact) -> None:
    keys = [train_request("teacher", learner(median_of=of), dataset, 0).key_parts()["inputs"] for of in (None, 2)]
    assert ["test" in one for one in keys] == [False, True]


def test_patience_and_a_median_of_the_last_evaluations_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match=r"median_of \(20\) needs .* patience \(3\) may end it"):
        learner(median_of=20, patience=3)


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], torch.Tensor], from_step: int) -> None:
    """Makes supervised training's loss go wrong from a step on."""
    honest, seen = Supervised.loss, [0]

    def loss(self: Supervised, student: Any, batch: Batch, progress: float) -> Losses:
        seen[0] += 1
        losses = honest(self, student, batch, progress)
        return Losses(spoil(losses.total), losses.logs) if seen[0] > from_step else losses

    monkeypatch.setattr(Supervised, "loss", loss)


def test_loss_that_is_no_number_stops_the_run_with_its_step(
    tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, lambda loss: loss * float("nan"), from_step=13)
    section = learner(schedule="constant", learning_rate=0.05, log_every=6)
    with pytest.raises(TrainingDiverged, match=r"not a finite number at step 13 \(learning rate 0.05\); the last good"):
        train_in(tmp_path, section, {"dataset": dataset}, checkpoint_every=1e-6)
    saved = [path.name[:15] for path in checkpoint_files(folder_of(tmp_path, section, dataset))]
    assert saved == ["step-0000000012", "step-0000000013"]


def test_loss_that_grows_beyond_reason_stops_the_run(
    tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, lambda loss: loss + 1e6, from_step=13)
    with pytest.raises(TrainingDiverged, match="grew from"):
        train_in(tmp_path, learner(), {"dataset": dataset})


def test_memory_that_is_not_enough_says_what_to_lower(
    tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's error is raised by hand: a CPU has no memory of its own that a step could exhaust."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(training_loop, "descend", full)
    with pytest.raises(OutOfMemory, match=r"train.accumulate \(now 1.*train.batch_size \(now 8\)"):
        train_in(tmp_path, learner(), {"dataset": dataset})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_next_run_resumes_there(
    tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    section = learner(log_every=5)
    whole = train_in(tmp_path / "whole", section, {"dataset": dataset})
    honest, seen = Supervised.loss, [0]

    def loss(self: Supervised, *arguments: Any) -> Losses:
        seen[0] += 1
        if seen[0] == 7:
            os.kill(os.getpid(), number)
        return honest(self, *arguments)

    monkeypatch.setattr(Supervised, "loss", loss)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="at step 7"):
        train_in(tmp_path / "stopped", section, {"dataset": dataset})
    assert signal.getsignal(number) is before
    seen[0] = 100
    assert train_in(tmp_path / "stopped", section, {"dataset": dataset}).digest == whole.digest
    assert seen[0] == 100 + 24 - 7


def test_terminated_process_ends_in_order(tmp_path: Path, dataset: Artifact) -> None:
    section = learner(steps=100_000, evaluate_every=100_000)
    folder = folder_of(tmp_path, section, dataset)
    process = train_apart(tmp_path, section, dataset, checkpoint_every=0.2)
    before = until(lambda: checkpoint_files(folder), "a checkpoint")[-1]
    os.kill(process.pid, signal.SIGTERM)
    process.join(HANG)
    assert process.exitcode == 1  # an uncaught Interrupted; not a signal's -15
    assert checkpoint_files(folder)[-1] > before


def test_a_resumed_run_logs_the_step_where_it_resumes(
    tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled(monkeypatch, lambda loss: loss * float("nan"), from_step=13)
    with pytest.raises(TrainingDiverged):
        train_in(tmp_path, learner(), {"dataset": dataset}, checkpoint_every=1e-6)
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        train_in(tmp_path, learner(), {"dataset": dataset})
    assert "resumed at step 13 of 24" in caplog.text


def test_student_can_start_from_a_model_of_its_kind_alone(tmp_path: Path, dataset: Artifact) -> None:
    still = {"steps": 1, "learning_rate": 1e-20, "ema_decay": 0, "keep": "last"}
    teacher = train_in(tmp_path, learner(), {"dataset": dataset})
    student = train_in(tmp_path, learner(**still), {"dataset": dataset, "init": teacher})
    theirs = weights_of(teacher)
    assert all(np.allclose(value, theirs[name]) for name, value in weights_of(student).items())
    with pytest.raises(ConfigError, match="found the weights of mlp 16 for a network small_cnn"):
        train_in(tmp_path, learner(model={"name": "small_cnn"}), {"dataset": dataset, "init": teacher})


def test_unlabelled_images_that_never_count_are_warned_of(
    tmp_path: Path, dataset: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    section = learner({"name": "fixmatch", "threshold": 1.0}, evaluate_every=4)
    with caplog.at_level(logging.WARNING):
        model = train_in(tmp_path, section, {"dataset": dataset})
    assert [record.message for record in caplog.records if "no unlabelled image" in record.message] == [
        json.loads(model.file("metrics.json").read_text())["warnings"][0]
    ]


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_steps(
    tmp_path: Path, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident: list[int] = []
    honest = Supervised.after_step

    def after_step(self: Supervised, student: Any) -> None:
        resident.append(psutil.Process().memory_info().rss)
        honest(self, student)

    monkeypatch.setattr(Supervised, "after_step", after_step)
    train_in(tmp_path, learner(steps=2_000, evaluate_every=100), {"dataset": dataset}, checkpoint_every=0.2)
    assert len(resident) == 2_000
    assert max(resident[1_800:]) - max(resident[:200]) < 8 << 20
