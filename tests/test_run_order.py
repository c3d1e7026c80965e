"""The order of runs is that of their creation, whatever the clock said."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selftrain.flows.actions import verbs
from selftrain.flows.rounds.planning import last_record
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store import runs
from selftrain.ssl_tasks.store.runs import Run, StageRecord, all_runs, find_run


def test_a_run_stamped_in_the_future_is_last_until_the_next_one(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run.create(workspace, RunConfig())
    with monkeypatch.context() as changed:
        changed.setattr(runs.time, "time", lambda: time.mktime((2099, 1, 1, 0, 0, 0, 0, 0, 0)))
        future = Run.create(workspace, RunConfig())
    assert find_run(workspace).id == future.id
    now = Run.create(workspace, RunConfig())
    assert [one.id for one in all_runs(workspace)] == [first.id, future.id, now.id]
    assert find_run(workspace).id == find_run(workspace, "run").id == now.id
    assert [one["id"] for one in verbs.runs(workspace)] == [first.id, future.id, now.id]


def test_a_stage_is_compared_with_the_run_before_not_with_one_of_the_future(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for number, year in enumerate((2030, 2099, 2031)):
        monkeypatch.setattr(runs.time, "time", lambda year=year: time.mktime((year, 1, 1, 0, 0, 0, 0, 0, 0)))
        made.append(Run.create(workspace, RunConfig()))
        made[-1].record(StageRecord("teacher", "train", "computed", key=f"key{number}"))
    found = last_record(workspace, "teacher", before=made[2])
    assert found is not None
    assert found.key == "key1"
    assert last_record(workspace, "teacher", before=made[0]) is None


def test_runs_from_before_they_were_numbered_come_first_by_their_times(workspace: Path) -> None:
    made = [Run.create(workspace, RunConfig()) for _ in range(3)]
    for run, created in zip(made[:2], (4e9, 3e9), strict=True):
        info = {name: value for name, value in run.info.items() if name != "number"}
        (run.path / "run.json").write_text(json.dumps({**info, "created": created}))
    assert [one.id for one in all_runs(workspace)] == [made[1].id, made[0].id, made[2].id]


def test_runs_that_are_created_at_once_have_numbers_of_their_own(workspace: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Run.create(workspace, RunConfig()), range(24)))
    assert sorted(run.info["number"] for run in made) == list(range(1, 25))
