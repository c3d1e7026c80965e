"""Independent stages run at the same time where there is room; members of an ensemble are each evaluated.

The bodies are stand-ins that wait for each other, in threads: so the order is certain on any machine. Real stages, in
processes of their own, run at the same time in `test_runs.py`.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selftrain.flows.rounds import conductor as conducting
from selftrain.flows.rounds.conductor import Conductor
from selftrain.flows.rounds.self_training import Summary, self_training
from selftrain.flows.rounds.stages import dataset_request
from selftrain.ssl_tasks.errors import Interrupted, StageFailed
from selftrain.ssl_tasks.execution.stage import Request, StageContext, StageResult
from selftrain.ssl_tasks.settings.recipe import parse_recipe
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run
from selftrain.ssl_tasks.store.stage_names import stage_names
from tests.clock import HANG

PATIENCE = HANG
SUMMARIES: Mapping[str, dict[str, Any]] = {
    "dataset": {"labeled": 1},
    "select": {"kept": 1},
    "evaluate": {"validation_accuracy": 0.5, "test_accuracy": 0.5},
    "gate": {"decision": "continue", "reason": ""},
}
PARTS = dict.fromkeys(("labeled", "unlabeled", "validation", "test"), "0")


class Stages:
    """Stands for all bodies: notes who runs, how many at once, and waits for others where it is told to."""

    def __init__(self, meet: frozenset[str] = frozenset(), fails: str = "") -> None:
        self.meet, self.fails = meet, fails
        self.met = threading.Barrier(max(1, len(meet)), timeout=PATIENCE)
        self.lock = threading.Lock()
        self.names: list[str] = []
        self.running = self.most = 0

    def __call__(self, request: Request, context: StageContext, _log: Path) -> StageResult:
        with self.lock:
            self.names.append(request.name)
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            if request.name in self.meet:
                self.met.wait()  # breaks, and fails, unless all of them run at the same time
            if request.name == self.fails:
                raise StageFailed(request.name, "as asked")
            (context.output / "name").write_text(request.name)
            return StageResult(SUMMARIES.get(request.stage, {}), PARTS if request.stage == "dataset" else {})
        finally:
            with self.lock:
                self.running -= 1


def config_of(parallel: int, **recipe: Any) -> RunConfig:
    """Two teachers, one round of two students."""
    raw = {"teacher": {"members": 2}, "rounds": [{"student": {"members": 2}, **recipe}]}
    return parse_recipe({**raw, "runtime": {"parallel": parallel}}, Path("room.yaml")).config


@pytest.fixture
def conduct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the rounds with these stages."""
    monkeypatch.setattr("selftrain.ssl_tasks.evaluation.metrics.true_precision", lambda *_: None)

    def run(config: RunConfig, stages: Stages) -> Summary:
        monkeypatch.setattr(conducting, "run_isolated", stages)
        conductor = Conductor(config, tmp_path, Run.create(tmp_path, config))
        try:
            return self_training(config, conductor)
        except BaseException:
            conductor.stop()
            raise
        finally:
            conductor.close()

    return run


@pytest.mark.parametrize(
    "meet",
    [
        ("evaluate-teacher-member-2", "predict-1"),
        ("student-1", "student-1-member-2"),
        ("evaluate-1", "evaluate-1-member-2"),
    ],
)
def test_what_does_not_depend_on_another_runs_at_the_same_time(conduct: Any, meet: tuple[str, str]) -> None:
    stages = Stages(frozenset(meet))
    assert conduct(config_of(2), stages).rounds[1].validation_accuracy == 0.5
    assert stages.most == 2


def test_without_room_one_stage_runs_after_the_other_in_the_order_of_the_plan(conduct: Any) -> None:
    config, stages = config_of(1, finetune={"image_size": 12}), Stages()
    conduct(config, stages)
    assert stages.most == 1
    assert stages.names == list(stage_names(config))


def test_every_member_is_trained_fine_tuned_and_evaluated(conduct: Any) -> None:
    stages = Stages()
    conduct(config_of(3, finetune={"image_size": 12}), stages)
    expected = {"teacher", "student-1", "finetune-1", "evaluate-teacher", "evaluate-1"}
    assert {f"{name}-member-2" for name in expected} | expected | {"evaluate-student-1"} <= set(stages.names)


def test_a_failed_evaluation_fails_the_run_and_what_waits_does_not_begin(conduct: Any) -> None:
    stages = Stages(frozenset({"evaluate-teacher", "predict-1"}), fails="evaluate-teacher")
    with pytest.raises(StageFailed, match="evaluate-teacher"):
        conduct(config_of(2), stages)
    assert "gate-1" not in stages.names


def test_what_waits_for_room_does_not_begin_once_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, stages = config_of(2), Stages()
    monkeypatch.setattr(conducting, "run_isolated", stages)
    conductor = Conductor(config, tmp_path, Run.create(tmp_path, config))
    for _ in range(2):
        conductor.room.acquire()
    waiting = conductor.submit(dataset_request(config.data, "contents"), 0)
    conductor.stop()
    conductor.room.release()
    with pytest.raises(Interrupted):
        waiting()
    conductor.close()
    assert stages.names == []
