"""The environment that Prefect and MLflow find; an empty variable counts as unset."""

import os
from pathlib import Path

import pytest

from selftrain.flows.actions.housekeeping import examine
from selftrain.flows.environment import set_environment
from selftrain.ssl_tasks.execution.devices import computed_by, resolve_device, resolve_precision
from selftrain.ssl_tasks.tracking.client import default_uri


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Ours to change: every variable is as before afterwards."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith(("PREFECT", "MLFLOW"))]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("empty", [False, True])
def test_without_a_server_prefect_is_kept_in_the_workspace(
    tmp_path: Path, environment: pytest.MonkeyPatch, empty: bool
) -> None:
    if empty:
        environment.setenv("PREFECT_API_URL", "")
    environment.setenv("PREFECT_API_KEY", "of the user's own server")
    set_environment(tmp_path)
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert os.environ["PREFECT_PROFILE"] == "ephemeral"
    assert not {"PREFECT_API_KEY", "PREFECT_API_URL"} & set(os.environ)


def test_the_users_own_server_stays(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    environment.setenv("PREFECT_API_KEY", "key")
    set_environment(tmp_path)
    assert "PREFECT_HOME" not in os.environ
    assert os.environ["PREFECT_API_KEY"] == "key"


def test_an_empty_address_of_mlflow_is_none(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", "")
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert {one.what: one.found for one in examine(tmp_path)}["MLflow"] == f"SQLite in {tmp_path}"


def test_doctor_says_what_decides_the_last_digits_on_this_machine(tmp_path: Path) -> None:
    device = resolve_device("auto")
    found = {one.what: one.found for one in examine(tmp_path)}["compute"]
    computed = computed_by(device, resolve_precision("auto", device))
    assert found.endswith(f"precision: auto means {computed['precision']}")
    assert (computed["instruction_set"] if device.type == "cpu" else computed["device"]) in found
