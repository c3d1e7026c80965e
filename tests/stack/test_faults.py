"""A run gives the right result once, whatever dies during it. docs/operations.md has these as a table."""

import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from selftrain.ssl_tasks.store.artifacts import Store
from selftrain.ssl_tasks.store.runs import all_runs
from tests.stack.api import until
from tests.stack.team import Started, Team, digests, family, gpu_holder

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def silent(team: Team) -> dict[str, Started]:
    """Runs whose process ended with its worker, stopped or killed: no process is left to say so.

    It takes the server's automation three heartbeats to notice, while other tests continue.
    """
    runs = {}
    for name, number in (("worker-stopped", signal.SIGTERM), ("all-killed", signal.SIGKILL)):
        # Deployments of their own: one run of each at a time, and the server does not know yet that these are over.
        started = runs[name] = team.start(name, team.deploy("--name", name))
        flow = started.in_training()
        processes = family(flow)
        assert gpu_holder(team.stack) in processes
        team.stack.stop("worker", number)
        if number == signal.SIGKILL:
            flow.kill()
        assert team.api.state(started.id)["type"] == "RUNNING", "nobody has told the server"
        gives_up_the_gpu(team, processes, 30)
        team.stack.start_worker()
    return runs


@pytest.fixture
def one_slot(team: Team) -> Iterator[None]:
    """The servers' limit where all machines together may use one GPU."""
    assert team.stack.selftrain("init-server", "--gpus", "1").returncode == 0
    yield
    assert team.stack.selftrain("init-server", "--gpus", team.stack.variables["GPUS"]).returncode == 0


def gives_up_the_gpu(team: Team, processes: set[int], seconds: float) -> None:
    """Another run may have it by then."""
    until(lambda: gpu_holder(team.stack) not in processes, seconds, lambda: f"one of {processes} keeps the GPU")


@pytest.mark.usefixtures("silent")
def test_a_killed_flow_is_restarted_and_resumes_at_its_checkpoint(team: Team) -> None:
    started = team.start("flow-killed")
    flow = started.in_training()
    processes = family(flow)
    flow.kill()
    gives_up_the_gpu(team, processes, 30)
    started.finish()
    assert "Crashed" in team.api.history(started.id)
    assert "resumed at step" in started.log("teacher")


def test_a_killed_worker_costs_its_run_nothing_that_was_done(team: Team) -> None:
    started = team.start("worker-killed")
    started.in_training()
    team.stack.stop("worker", signal.SIGKILL)
    team.stack.start_worker()
    started.finish()


@pytest.mark.usefixtures("one_slot")
def test_a_cancelled_run_stays_cancelled_and_the_run_that_waits_gets_its_gpu(team: Team) -> None:
    endless = team.config("cancelled")["teacher"]
    endless["train"]["steps"] = 1_000_000
    started = team.start("cancelled", teacher=endless)
    processes = family(started.in_training())
    assert gpu_holder(team.stack) in processes
    team.stack.start_worker_elsewhere()
    waiting = team.start("waiting", team.deploy("--name", "waiting"))
    until(lambda: any(stage.name == "teacher" for stage in waiting.run.stages()))
    time.sleep(3)
    assert team.api.get("/v2/concurrency_limits/gpu")["active_slots"] == 1
    assert not waiting.log("teacher"), "one slot, which the other run has"
    team.api.post(f"/flow_runs/{started.id}/set_state", state={"type": "CANCELLING"})
    assert team.api.wait_for(started.id, "CANCELLED")["type"] == "CANCELLED"
    gives_up_the_gpu(team, processes, 60)
    assert started.run.info["state"] == "interrupted"
    assert "Crashed" not in team.api.history(started.id)
    waiting.finish()
    team.stack.stop("worker-elsewhere")


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


def test_mlflow_may_be_away_for_a_minute(team: Team) -> None:
    started = team.start("mlflow-away")
    started.in_training()
    team.stack.stop("mlflow")
    time.sleep(60)
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
def test_a_run_without_heartbeats_is_marked_crashed_and_resumes(
    team: Team, silent: dict[str, Started], name: str
) -> None:
    silent[name].finish()
    assert "Crashed" in team.api.history(silent[name].id)
    assert "resumed at step" in silent[name].log("teacher")


def test_after_all_faults_no_slot_is_held_and_no_process_is_left(team: Team) -> None:
    assert gpu_holder(team.stack) is None
    until(lambda: team.api.get("/v2/concurrency_limits/gpu")["active_slots"] == 0, 120)
    names = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [name for name in names if "prefect.engine" in name and str(team.stack.folder) in name]
    for run in all_runs(team.stack.folder / "workspaces" / "all-killed"):
        run.mend()
        assert run.info["state"] in ("done", "crashed")
    assert digests(Started(team, "", team.stack.folder / "workspaces" / "all-killed").run) == team.expected
