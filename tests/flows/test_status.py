"""`status` while a run computes: how long, how far, how long still."""

import json
import time
from pathlib import Path

import pytest

from selftrain.flows.cli.main import main
from selftrain.ssl_tasks.execution.progress import read_progress
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Store
from selftrain.ssl_tasks.store.runs import Run, StageRecord


@pytest.fixture
def events(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def write(events: Path, *lines: object) -> None:
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_running_stage_has_its_time_and_its_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(tmp_path, RunConfig.model_validate({"name": "now", "data": {"source": {"name": "digits"}}}))
    started = time.time() - 100
    run.record(StageRecord(name="teacher", stage="train", state="running", key="k", started=started))
    assert main(["--workspace", str(tmp_path), "status"]) == 0
    assert "0.0 s" not in capsys.readouterr().out
    attempt = Store(tmp_path / "store").attempt("train", "k")
    attempt.mkdir(parents=True)
    old = {"time": started - 5, "progress": [400, 500], "what": "train"}
    first, last = (
        {"time": started + at, "progress": [steps, 500], "what": "train"} for at, steps in ((10, 50), (90, 250))
    )
    write(attempt / "events.jsonl", old, first, {"time": started + 95, "metrics": {}, "step": 250}, last)
    assert main(["--workspace", str(tmp_path), "status"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "teacher" in line)
    assert "1:40" in line or "1:41" in line
    assert "train 250/500, 2.5 a second, 1:40 left" in line
    assert main(["--workspace", str(tmp_path), "status", "--json"]) == 0
    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["teacher"]["seconds"] >= 100
    assert stages["teacher"]["progress"] == {
        "done": 250,
        "total": 500,
        "what": "train",
        "rate": pytest.approx(2.5),
        "remaining_seconds": pytest.approx(100),
    }
    assert stages["evaluate-teacher"]["progress"] is None


def test_events_of_an_earlier_attempt_and_torn_lines_do_not_count(events: Path) -> None:
    assert read_progress(events, 0.0) is None
    write(events, {"time": 1.0, "progress": [4, 5], "what": "train"})
    assert read_progress(events, 2.0) is None
    with events.open("a") as file:
        file.write('{"time": 3.0, "progress": [1, 5], "what": "train"}\n{"time": 4.0, "prog')
    found = read_progress(events, 2.0)
    assert found is not None
    assert (found.done, found.rate) == (1, None)
