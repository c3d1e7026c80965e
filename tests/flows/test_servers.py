"""Real servers of Prefect and MLflow that come and go: the run continues, and in the end both have all of it, once."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from selftrain.ssl_tasks.training.launch import free_port
from tests.flows.claims import rows, unended_in_prefect
from tests.flows.faulty import let_go, run_faulty, wait_for_the_mark
from tests.flows.tiny import STAGES, computed_in_total, last, outcome, selftrain, states
from tests.local_servers import mlflow_server, prefect_server, settle

FRESH = {"student-1", "evaluate-1", "gate-1"}


def computed(workspace: Path) -> set[str]:
    """Returns the stages that the newest run has computed."""
    return {name for name, state in states(last(workspace)).items() if state == "computed"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_a_server_embedded_and_without_prefect_all_is_the_same(
    tmp_path: Path, migrated: Path, prefect_home: Path, finished: Path, recipe: str
) -> None:
    """Each way computes a third of the stages and reuses what the others did, whichever they were."""
    workspace = tmp_path / "workspace"
    with prefect_server(prefect_home, free_port()) as url:
        assert selftrain(workspace, "run", recipe, "--set", "rounds=[]", PREFECT_API_URL=url).returncode == 0
        assert computed(workspace) == {"dataset", "teacher", "evaluate-teacher"}
        assert not (workspace / "prefect").exists(), "the server's database, not one of our own"
        settle(migrated, workspace / "prefect")
        assert selftrain(workspace, "run", recipe, "--set", "rounds=1").returncode == 0
        assert computed(workspace) == {"predict-1", "select-1", "student-1", "evaluate-1", "gate-1"}
        assert selftrain(workspace, "run", recipe, "--no-prefect").returncode == 0
        assert computed(workspace) == {"predict-2", "select-2", "student-2", "evaluate-2", "gate-2"}
        assert outcome(last(workspace)) == outcome(last(finished))
        assert selftrain(workspace, "run", recipe, PREFECT_API_URL=url).returncode == 0
        assert set(states(last(workspace)).values()) == {"reused"}
        assert outcome(last(workspace)) == outcome(last(finished))
    assert computed_in_total(workspace) == STAGES


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_prefect_server_that_stops_in_mid_run_takes_only_its_page_with_it(
    copy: Path, recipe: str, prefect_home: Path
) -> None:
    port = free_port()
    with prefect_server(prefect_home, port) as url:
        httpx.post(f"{url}/v2/concurrency_limits/", json={"name": "gpu", "limit": 1}).raise_for_status()
        run = run_faulty(copy, recipe, "held", PREFECT_API_URL=url, SELFTRAIN_GPU_LIMIT="gpu")
        wait_for_the_mark(copy, run)
        assert httpx.get(f"{url}/v2/concurrency_limits/gpu").json()["active_slots"] == 1
    errors = let_go(copy, run)
    assert "a slot of 'gpu' could not be returned to Prefect" in errors
    assert "the stage runs without a slot of the concurrency limit 'gpu'" in errors
    assert "Prefect could not be told how" in errors
    assert "Traceback" not in errors
    assert last(copy).info["state"] == "done"
    assert computed(copy) == FRESH
    database = prefect_home / "prefect.db"
    assert unended_in_prefect(database), "the server still believes that it runs"
    away = selftrain(copy, "run", recipe, PREFECT_API_URL=url)
    assert away.returncode == 3
    assert f"PREFECT_API_URL={url} cannot be reached" in away.stderr
    with prefect_server(prefect_home, port):
        assert selftrain(copy, "run", recipe, PREFECT_API_URL=url).returncode == 0
    assert unended_in_prefect(database) == []
    assert {state for (state,) in rows(database, "select state_type from flow_run")} == {"COMPLETED"}


def told(server: Path) -> dict[str, list[Any]]:
    """The runs of MLflow's server by name, with their states; and for each, the steps of its loss."""
    runs = rows(server / "mlflow.db", "select name, status, run_uuid from runs")
    names = {name for name, _, _ in runs}
    steps = "select step from metrics where key = 'loss' and run_uuid = '{}' order by step"
    return {
        name: [
            (status, [step for (step,) in rows(server / "mlflow.db", steps.format(number))])
            for one, status, number in runs
            if one == name
        ]
        for name in names
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_mlflow_server_that_is_away_or_dies_gets_everything_once(copy: Path, recipe: str, tmp_path: Path) -> None:
    server, port = tmp_path / "mlflow", free_port()
    uri = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    longer = ("--set", "rounds=1", "--set", "rounds.1.student.train.steps=50")
    never_there = selftrain(copy, "run", recipe, *longer, **uri)
    assert never_there.returncode == 0, never_there.stderr
    assert "records are not yet in MLflow" in never_there.stderr
    waited = last(copy).id
    assert selftrain(copy, "sync", **uri).returncode == 2
    with mlflow_server(server, port):
        run = run_faulty(copy, recipe, "held", **uri)
        wait_for_the_mark(copy, run)
    died = last(copy).id
    assert "records are not yet in MLflow" in let_go(copy, run)
    with mlflow_server(server, port):
        for _ in range(2):  # safe to repeat
            synced = selftrain(copy, "sync", **uri)
            assert synced.returncode == 0, synced.stderr
            found = told(server)
    assert {status for runs in found.values() for status, _ in runs} == {"FINISHED"}
    assert len(found[waited]) == len(found[died]) == 1
    assert sorted(steps for _, steps in found["student-1"]) == [[20, 40], [20, 40, 50]]
