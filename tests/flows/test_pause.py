"""A name and a Pause that a person sets on Prefect's page of a run take effect."""

import contextvars
import threading
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Paused, Running
from prefect.utilities.names import generate_slug

from selftrain.flows.prefect import tasks
from selftrain.flows.prefect.flow import flow_run_name, is_generated
from selftrain.flows.prefect.server import prefect_api
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run
from tests.clock import HANG, until


def test_names_that_prefect_makes_up_are_told_from_given_ones() -> None:
    assert all(is_generated(generate_slug(2)) for _ in range(300))
    assert not any(is_generated(name) for name in ("nightly", "night-run", "brave", "my-lion", "two-brave-lions"))


def test_a_given_name_stays_and_a_run_without_one_is_called_as_its_recipe(tmp_path: Path) -> None:
    """In the two ways in which flow runs are made: by calling the flow, and by a request to the server."""

    @flow(name="self-training", flow_run_name=flow_run_name)
    def named(config: RunConfig) -> None: ...

    with prefect_api(tmp_path), get_client(sync_client=True) as client:
        parameters = {"config": RunConfig(name="flowers")}
        called = named(**parameters, return_state=True).state_details.flow_run_id
        asked = [client.create_flow_run(named, parameters={}, name=name) for name in ("monday", None)]
        for one in asked:
            run_flow(named, flow_run=one, parameters=parameters)
        names = [client.read_flow_run(identity).name for identity in (called, *(one.id for one in asked))]
    assert names == ["flowers", "monday", "flowers"]


def test_no_stage_begins_while_a_person_has_paused_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PAUSE_SECONDS", 0.05)
    run = Run.create(tmp_path / "workspace", RunConfig())
    with prefect_api(tmp_path), get_client(sync_client=True) as client:
        asked = client.create_flow_run(flow(lambda: None, name="self-training"), state=Running())
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(asked.id))
        tasks.wait_while_paused(run)  # returns at once
        client.set_flow_run_state(asked.id, Paused())
        waiting = threading.Thread(target=contextvars.copy_context().run, args=(tasks.wait_while_paused, run))
        waiting.start()
        until(lambda: run.info["state"] == "waiting")
        until(lambda: "no stage is running" in str(client.read_flow_run(asked.id).state.message))
        assert waiting.is_alive()
        assert "Resume" in run.info["stopped"]
        client.resume_flow_run(asked.id)
        waiting.join(HANG)
        assert (waiting.is_alive(), run.info["state"], run.info["stopped"]) == (False, "running", "")
