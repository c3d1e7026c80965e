"""Whatever dies under a run: in the end the right result, once. docs/operations.md has these as a table."""

import signal

import psutil
import pytest

from ssl_tasks.artifacts import Store
from ssl_tasks.runs import all_runs
from tests.stack.api import until
from tests.stack.team import Started, Team, digests, nobody_holds_the_gpu

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def silent(team: Team) -> dict[str, Started]:
    """Runs whose process ended with its worker, stopped or killed: nobody is left to say so.

    It takes the server's automation three heartbeats to notice, in which the other tests go on.
    """
    runs = {}
    for name, number in (("worker-stopped", signal.SIGTERM), ("all-killed", signal.SIGKILL)):
        # Deployments of their own: one run of each at a time, and nobody knows yet that these are over.
        started = runs[name] = team.start(name, team.deploy("--name", name))
        flow = started.in_training()
        team.stack.stop("worker", number)
        if number == signal.SIGKILL:
            flow.kill()
        assert team.api.state(started.id)["type"] == "RUNNING", "nobody has told the server"
        until(lambda: nobody_holds_the_gpu(team.stack))
        team.stack.start_worker()
    return runs


@pytest.mark.usefixtures("silent")
def test_a_killed_flow_is_noticed_by_its_worker_and_goes_on_from_its_checkpoint(team: Team) -> None:
    started = team.start("flow-killed")
    started.in_training().kill()
    until(lambda: nobody_holds_the_gpu(team.stack))
    started.finish()
    assert "Crashed" in team.api.history(started.id)
    assert "resumed at step" in started.log("teacher")


def test_a_killed_worker_costs_its_run_nothing_that_was_done(team: Team) -> None:
    started = team.start("worker-killed")
    started.in_training()
    team.stack.stop("worker", signal.SIGKILL)
    team.stack.start_worker()
    started.finish()


def test_a_cancelled_run_stays_cancelled(team: Team) -> None:
    started = team.start("cancelled")
    started.in_training()
    team.api.post(f"/flow_runs/{started.id}/set_state", state={"type": "CANCELLING"})
    assert team.api.wait_for(started.id, "CANCELLED")["type"] == "CANCELLED"
    until(lambda: nobody_holds_the_gpu(team.stack))
    assert started.run.info["state"] == "interrupted"
    assert "Crashed" not in team.api.history(started.id)


def test_the_prefect_server_may_restart_under_a_run(team: Team) -> None:
    started = team.start("prefect-restarted")
    started.in_training()
    team.stack.stop("prefect-server", signal.SIGKILL)
    team.stack.stop("prefect-services", signal.SIGKILL)
    team.stack.start("prefect-server")
    team.stack.wait_healthy("prefect-server")
    team.stack.start("prefect-services")
    started.finish()


def test_postgresql_may_restart_under_a_run(team: Team) -> None:
    started = team.start("postgresql-restarted")
    started.in_training()
    team.stack.stop("postgres", signal.SIGINT)
    team.stack.start_postgres()
    started.finish()


def test_mlflow_may_be_away_for_a_while(team: Team) -> None:
    started = team.start("mlflow-away")
    started.in_training()
    team.stack.stop("mlflow")
    until(lambda: started.finished("evaluate-teacher"))
    team.stack.start("mlflow")
    team.stack.wait_healthy("mlflow")
    started.finish()
    done = team.stack.selftrain("--workspace", str(started.workspace), "sync")
    assert done.returncode == 0, done.stderr
    runs = team.mlflow_runs(started)
    finished = [run for run in runs if run.info.status == "FINISHED"]
    keys = [run.data.tags["selftrain.key"] for run in finished if "selftrain.key" in run.data.tags]
    assert len(keys) == len(set(keys)), "no stage is told twice"


def test_the_object_storage_may_fail_half_of_its_requests(team: Team) -> None:
    team.stack.faults.touch()
    try:
        started = team.start("s3-failing")
        started.finish()
        refused = team.stack.faults.read_text().splitlines()
    finally:
        team.stack.faults.unlink()
    assert any("/selftrain/" in line for line in refused), "the shared store was hit"
    again = team.start("s3-failing")
    assert team.api.wait_for(again.id, "COMPLETED", "FAILED", "CRASHED")["type"] == "COMPLETED"
    made = {f"{artifact.stage}/{artifact.key}.json" for artifact in Store(started.workspace / "store").artifacts()}
    assert {name.split("/", 2)[2] for name in team.stored("selftrain", "s3-failing/artifacts/")} == made


@pytest.mark.parametrize("name", ["worker-stopped", "all-killed"])
def test_a_run_that_fell_silent_is_crashed_and_goes_on(team: Team, silent: dict[str, Started], name: str) -> None:
    silent[name].finish()
    assert "Crashed" in team.api.history(silent[name].id)
    assert "resumed at step" in silent[name].log("teacher")


def test_after_all_of_it_nothing_is_held_and_nobody_is_left(team: Team) -> None:
    assert nobody_holds_the_gpu(team.stack)
    until(lambda: team.api.get("/v2/concurrency_limits/gpu")["active_slots"] == 0)
    names = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [name for name in names if "prefect.engine" in name and str(team.stack.folder) in name]
    for run in all_runs(team.stack.folder / "workspaces" / "all-killed"):
        run.mend()
        assert run.info["state"] in ("done", "crashed")
    assert digests(Started(team, "", team.stack.folder / "workspaces" / "all-killed").run) == team.expected
