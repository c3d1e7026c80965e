"""A team's day on the real servers: deployed, run, looked at, scheduled."""

import json
import os
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient

from tests.stack.api import until
from tests.stack.servers import ROOT
from tests.stack.team import STAGES, Team, computed

pytestmark = pytest.mark.stack


@pytest.fixture
def mlflow(team: Team) -> MlflowClient:
    """A client that is logged in."""
    return team.mlflow()


def test_a_deployed_recipe_computed_every_stage_once(team: Team) -> None:
    assert len(team.expected) == STAGES
    assert computed(team.stack.folder / "workspaces" / "undisturbed") == STAGES


def test_labels_and_lineage_are_read_back_through_mlflow(team: Team, mlflow: MlflowClient) -> None:
    version = mlflow.get_model_version_by_alias("undisturbed", "champion")
    model = mlflow.get_logged_model(str(version.source).rsplit("/", 1)[-1])
    assert model.tags["selftrain.digest"] in team.expected.values()
    experiment = mlflow.get_experiment_by_name("selftrain")
    assert experiment is not None
    runs = mlflow.search_runs([experiment.experiment_id], f"tags.`selftrain.digest` = '{team.expected['student-1']}'")
    inputs = {one.dataset.name for one in runs[0].inputs.dataset_inputs} if runs[0].inputs else set()
    assert any("select" in name for name in inputs), inputs
    selection = mlflow.search_runs(
        [experiment.experiment_id], f"tags.`selftrain.digest` = '{team.expected['select-1']}'"
    )[0]
    path = Path(mlflow.download_artifacts(selection.info.run_id, "preview.csv", str(team.stack.folder)))
    header, first, *_ = path.read_text().splitlines()
    assert "label" in header
    assert first.count(",") == header.count(",")


def test_the_weights_of_a_champion_come_from_the_object_storage(team: Team, mlflow: MlflowClient) -> None:
    version = mlflow.get_model_version_by_alias("undisturbed", "champion")
    model = mlflow.get_logged_model(str(version.source).rsplit("/", 1)[-1])
    assert model.artifact_location.startswith("mlflow-artifacts:"), "the server, not the client, talks to the storage"
    assert [name for name in team.stored("mlflow") if name.endswith("model.safetensors")]


def test_the_form_is_typed_and_wrong_values_are_refused(team: Team) -> None:
    schema = team.api.get(f"/deployments/{team.deployment}")["parameter_openapi_schema"]
    assert "RunConfig" in json.dumps(schema)
    wrong = team.config("undisturbed", seed=-1)
    answer = team.api.http.post(
        f"/deployments/{team.deployment}/create_flow_run", json={"parameters": {"config": wrong}}
    )
    assert answer.status_code in (409, 422), answer.text


def test_a_run_without_new_work_ends_at_once_with_that_state(team: Team) -> None:
    started = team.start("undisturbed")
    state = team.api.wait_for(started.id, "COMPLETED", "FAILED", "CRASHED")
    assert (state["name"], state["message"]) == ("NothingNew", "every stage was reused; nothing was recomputed")
    assert computed(started.workspace) == STAGES


def test_another_machine_takes_every_stage_from_the_shared_store(team: Team) -> None:
    config = team.config("undisturbed")
    elsewhere = team.stack.folder / "workspaces" / "another-machine"
    flow_run = team.api.start(team.deployment, config=config, workspace=str(elsewhere))
    state = team.api.wait_for(flow_run, "COMPLETED", "FAILED", "CRASHED")
    assert state["name"] == "NothingNew", state
    assert computed(elsewhere) == 0


def test_a_schedule_creates_runs_and_goes_with_its_deployment(team: Team) -> None:
    deployment = team.deploy("--name", "nightly", "--cron", "30 3 * * *")
    wanted = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    scheduled = until(lambda: team.api.post("/flow_runs/filter", **wanted))
    assert all("03:30:00" in run["expected_start_time"] for run in scheduled)
    assert team.deploy("--name", "nightly", "--interval", "86400") == deployment
    assert [one["schedule"]["interval"] for one in team.api.get(f"/deployments/{deployment}")["schedules"]] == [86400]
    assert team.deploy("--name", "nightly") == deployment
    assert team.api.get(f"/deployments/{deployment}")["schedules"] == []


def test_setting_up_the_server_again_creates_no_duplicates(team: Team) -> None:
    before = team.api.post("/automations/filter")
    done = team.stack.selftrain(*team.stack.command("prefect-init")[1:])
    assert done.returncode == 0, done.stderr
    assert "created" not in done.stdout
    after = team.api.post("/automations/filter")
    assert sorted(one["name"] for one in after) == sorted(one["name"] for one in before)
    assert len(before) == 4


def test_the_webhook_gets_champions_and_failures(team: Team) -> None:
    until(lambda: any("new champion of undisturbed" in text for text in team.told), story=lambda: str(team.told))
    steep = team.config("steep")
    steep["teacher"]["train"].update(learning_rate=1e30, schedule="constant", precision="fp32")
    flow_run = team.api.start(team.deployment, config=steep, workspace=str(team.stack.folder / "workspaces" / "steep"))
    assert team.api.wait_for(flow_run, "COMPLETED", "FAILED", "CRASHED")["type"] == "FAILED"
    until(lambda: any("failed: steep" in text for text in team.told), story=lambda: str(team.told))
    assert all(json.loads(text)["text"] for text in team.told)


@pytest.mark.parametrize(("service", "path"), [("prefect-server", "/api/flows/count"), ("mlflow", "/version")])
def test_requests_without_credentials_are_refused(team: Team, service: str, path: str) -> None:
    url = team.stack.url(service) + path
    answer = httpx.post(url) if service == "prefect-server" else httpx.get(url)
    assert answer.status_code in (401, 403)


def test_mlflow_answers_only_to_its_own_names(team: Team) -> None:
    login = ("admin", team.stack.variables["MLFLOW_ADMIN_PASSWORD"])
    url = f"{team.stack.url('mlflow')}/api/2.0/mlflow/experiments/search?max_results=1"
    answers = {
        host: httpx.get(url, headers={"Host": host}, auth=login).status_code for host in ("mlflow:5000", "evil.example")
    }
    assert answers == {"mlflow:5000": 200, "evil.example": 403}


def test_nothing_listens_beyond_this_host(team: Team) -> None:
    import psutil

    ours = {process.pid for process in team.stack.processes.values()}
    ours |= {child.pid for pid in list(ours) for child in psutil.Process(pid).children(recursive=True)}
    listening = [one for one in psutil.net_connections("inet") if one.status == "LISTEN" and one.pid in ours]
    assert listening
    assert {one.laddr.ip for one in listening} <= {"127.0.0.1", "::1"}
    assert os.getpid() not in ours


def test_the_repository_deploys_what_prefect_yaml_says(team: Team) -> None:
    done = team.stack.prefect("deploy", "--all", "--prefect-file", str(ROOT / "prefect.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    deployment = team.api.get("/deployments/name/self-training/nightly-digits")
    assert deployment["entrypoint"] == "selftrain.flows.prefect.flow.self_training_flow"
    assert [one["schedule"]["cron"] for one in deployment["schedules"]] == ["0 2 * * *"]
