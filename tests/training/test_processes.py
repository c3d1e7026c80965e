"""Several processes train one network: the same numbers, and an orderly end whatever happens to one of them."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from selftrain.ssl_tasks.errors import ConfigError, SelftrainError, TrainingDiverged
from selftrain.ssl_tasks.execution.stage import StageContext
from selftrain.ssl_tasks.settings.run_config import LearnerSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.training.checkpoints import checkpoint_files
from selftrain.ssl_tasks.training.launch import answer_path, free_port, from_json, read_answers, to_json
from tests.clock import HANG
from tests.foreign import listeners
from tests.training.small_runs import folder_of, history_of, learner, train_in, weights_of
from tests.warm import Command, call


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path, dataset: Artifact) -> None:
    """In fp32, on a network without batch norm, whose statistics are each process's own where there is no CUDA."""
    method = {"name": "fixmatch", "threshold": 0.11}
    section = learner(method, {"name": "mlp-2", "width": 32}, learning_rate=0.05)
    one = train_in(tmp_path / "one", section, {"dataset": dataset})
    two = trained(tmp_path / "two", section, dataset, processes=2)
    theirs = weights_of(two)
    for name, value in weights_of(one).items():
        assert np.abs(value - theirs[name]).max() < 1e-5, name
    assert history_of(one)["mask"].sum() > 0
    # Shares (of the gradient, of the largest class) are each rank's own, averaged; these are means over images.
    for name in ("learning_rate", "loss", "supervised", "unsupervised", "mask", "validation_loss"):
        both = history_of(one)[name].to_numpy(), history_of(two)[name].to_numpy()
        assert both[0] == pytest.approx(both[1], rel=1e-4, abs=1e-6, nan_ok=True), name


def train(workspace: Path, section: LearnerSettings, dataset: Artifact, **runtime: Any) -> Command:
    """Starts the training in a process of its own, which starts the ranks."""
    return call(train_in, workspace, section, {"dataset": dataset}, **runtime)


def trained(workspace: Path, section: LearnerSettings, dataset: Artifact, **runtime: Any) -> Artifact:
    """The same, to its end."""
    process = train(workspace, section, dataset, **runtime)
    said = process.communicate(timeout=HANG)[1]
    assert process.returncode == 0, said
    return train_in(workspace, section, {"dataset": dataset})  # which is answered


def wait_for(what: Callable[[], Any]) -> Any:
    """Until `what` is true."""
    deadline = time.monotonic() + HANG
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def ranks_below(pid: int) -> list[psutil.Process]:
    """The training processes, without their launcher."""
    return [one for one in psutil.Process(pid).children(recursive=True) if "RANK" in one.environ()]


@pytest.mark.slow
def test_group_that_lost_a_rank_and_was_stopped_makes_the_same_model(tmp_path: Path, dataset: Artifact) -> None:
    section = learner(model={"name": "small_cnn", "width": 4}, steps=300, evaluate_every=100, log_every=10)
    folder = folder_of(tmp_path / "hurt", section, dataset)
    group = {"processes": 2, "checkpoint_every": 0.1}

    def reached() -> int:
        return max((int(path.name[5:15]) for path in checkpoint_files(folder)), default=0)

    hurt = train(tmp_path / "hurt", section, dataset, **group)
    wait_for(reached)
    ranks = ranks_below(hurt.pid)
    assert len(ranks) == 2
    ranks[1].kill()
    said = hurt.communicate(timeout=HANG)[1]
    assert re.search(r"SelftrainError: training process \d of 2 .* was killed.*Run again", said), said
    wait_for(lambda: not any(one.is_running() for one in ranks))
    before, stopped = reached(), train(tmp_path / "hurt", section, dataset, **group)
    wait_for(lambda: reached() > before)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=HANG)[1]
    assert re.search("Interrupted: .*asked to stop at step", said), said
    ended = [trained(tmp_path / name, section, dataset, **group) for name in ("hurt", "whole")]
    assert ended[0].digest == ended[1].digest


@pytest.mark.slow
def test_ranks_end_with_the_process_that_started_them(tmp_path: Path, dataset: Artifact) -> None:
    section = learner(steps=20_000, evaluate_every=20_000)
    process = train(tmp_path, section, dataset, processes=2, checkpoint_every=0.1)
    wait_for(lambda: checkpoint_files(folder_of(tmp_path, section, dataset)))
    ranks = ranks_below(process.pid)
    assert len(ranks) == 2
    hosts = {host for host, _ in listeners(psutil.Process(process.pid))}
    assert hosts <= {"127.0.0.1", "::1"}, "on one host, the ranks meet in a file and talk over loopback"
    process.kill()
    wait_for(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in ranks))


@pytest.mark.slow
def test_two_hosts_make_what_two_processes_make(tmp_path: Path, dataset: Artifact) -> None:
    """Both hosts are this one: the second runs `selftrain assist`, and ends when it is asked to.

    They meet over TCP as two machines do; a network between them, which may be slow or part, is not tested.
    """
    section = learner()
    words = [
        sys.executable,
        "-m",
        "selftrain",
        "--workspace",
        str(tmp_path / "two"),
        "assist",
        "--device",
        "cpu",
    ]
    assistant = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert assistant.stdout is not None
        assert assistant.stderr is not None
        assert assistant.stdout.readline().startswith("assisting"), assistant.communicate()[1]
        hosts = {"nodes": 2, "rendezvous": f"127.0.0.1:{free_port()}"}
        found = trained(tmp_path / "two", section, dataset, **hosts)
        told = [assistant.stderr.readline().strip() for _ in range(2)]
        assert told == [f"joining train-{found.key}", f"train-{found.key}: done"]
    finally:
        assistant.terminate()
        assistant.communicate(timeout=HANG)
    assert assistant.returncode == 130
    assert found.digest == trained(tmp_path / "one", section, dataset, processes=2).digest


def answer(folder: Path, number: int, **values: Any) -> None:
    answer_path(folder, number).write_text(json.dumps(values))


def test_result_is_that_of_the_first_rank(tmp_path: Path) -> None:
    answer(tmp_path, 0, summary={"steps": 3}, parts={})
    answer(tmp_path, 1, summary={}, parts={})
    assert read_answers(tmp_path, 2).summary == {"steps": 3}


def test_cause_is_told_before_what_followed_from_it(tmp_path: Path) -> None:
    answer(tmp_path, 0, error="SelftrainError", message="RuntimeError: connection closed by peer")
    with pytest.raises(SelftrainError, match="training process 1 of 3"):
        read_answers(tmp_path, 3)
    answer(tmp_path, 2, error="TrainingDiverged", message="the loss is not a finite number")
    with pytest.raises(TrainingDiverged, match="not a finite number"):
        read_answers(tmp_path, 3)


def test_hosts_that_did_not_meet_are_told_how_to(tmp_path: Path) -> None:
    with pytest.raises(SelftrainError, match=r"the 2 hosts of runtime\.nodes did not meet.*`selftrain assist`"):
        read_answers(tmp_path, 4, nodes=2)


def test_batch_that_cannot_be_shared_is_refused(tmp_path: Path, dataset: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 9 cannot be shared by runtime\.processes = 2"):
        train_in(tmp_path, learner(batch_size=9), {"dataset": dataset}, processes=2)


def test_context_travels_as_plain_json(tmp_path: Path, dataset: Artifact) -> None:
    context = StageContext(learner(), {"dataset": dataset}, tmp_path, tmp_path, tmp_path, events=tmp_path, seed=3)
    assert from_json(to_json(context)) == context
