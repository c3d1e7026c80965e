"""A person between the rounds: the run waits, the person corrects and approves, the corrections count."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from prefect.client.schemas.objects import State, StateType

from selftrain.flows.prefect.server import prefect_api
from selftrain.flows.prefect.tasks import followed_by_running
from selftrain.flows.rounds.conductor import APPROVAL_SECONDS
from selftrain.ssl_tasks.store.locks import alone
from selftrain.ssl_tasks.store.runs import find_run
from tests.clock import HANG
from tests.flows.tiny import last, selftrain, start


def test_a_held_run_waits_for_approval_and_uses_corrections(copy: Path, recipe: str, tmp_path: Path) -> None:
    words = ("run", recipe, "--set", "rounds.1.hold=true", "--set", "rounds=1", "--no-prefect")
    before = last(copy).id
    run = start(copy, *words)
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline and (last(copy).id == before or last(copy).info["state"] != "waiting"):
        time.sleep(0.2)
    waiting = last(copy)
    assert waiting.info["state"] == "waiting"
    with alone(copy) as nobody:
        assert not nobody, "`clean` takes nothing from under it"
    first = waiting.artifact("select-1")
    assert first is not None
    table = pd.read_parquet(first.file("selection.parquet"))
    wrong = table.iloc[0]
    corrections = tmp_path / "corrections.csv"
    corrections.write_text(f"sample_id,label\n{wrong.sample_id},{(wrong.label + 1) % 10}\n")
    assert selftrain(copy, "labels", "apply", waiting.id, str(corrections)).returncode == 0
    assert selftrain(copy, "approve", waiting.id).returncode == 0
    assert run.wait(timeout=HANG) == 0
    second = find_run(copy, waiting.id).artifact("select-1")
    assert second is not None
    assert second.digest != first.digest
    corrected = pd.read_parquet(second.file("selection.parquet")).set_index("sample_id").loc[wrong.sample_id]
    assert (corrected.label, corrected.source) == ((wrong.label + 1) % 10, "override")
    assert selftrain(copy, *words).returncode == 0, "what was approved is not asked again"


def test_what_the_recipe_says_of_labels_counts_beside_applied_corrections(
    copy: Path, recipe: str, tmp_path: Path
) -> None:
    before = last(copy).artifact("select-1")
    assert before is not None
    one, two = pd.read_parquet(before.file("selection.parquet")).sample_id[:2]
    team, applied = tmp_path / "team.csv", tmp_path / "applied.csv"
    team.write_text(f"sample_id,label\n{one},3\n")
    applied.write_text(f"sample_id,label\n{two},reject\n")
    assert selftrain(copy, "labels", "apply", "last", str(applied)).returncode == 0
    words = ("--set", "rounds=1", "--set", f"rounds.1.select.overrides={team}", "--no-prefect")
    assert selftrain(copy, "run", recipe, *words).returncode == 0
    artifact = last(copy).artifact("select-1")
    assert artifact is not None
    said = pd.read_parquet(artifact.file("overrides.parquet")).set_index("sample_id").label
    assert set(said.index) == {one, two}
    assert said[one] == 3


def test_a_held_run_is_paused_in_prefect_and_resume_approves_it(copy: Path, recipe: str, tmp_path: Path) -> None:
    before = last(copy).id
    with prefect_api(tmp_path / "server") as url, httpx.Client(base_url=url, timeout=30) as prefect:
        password = os.environ["PREFECT_API_AUTH_STRING"]
        prefect.auth = httpx.BasicAuth(*password.split(":", 1))
        told = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": password}
        run = start(copy, "run", recipe, "--set", "rounds.1.hold=true", "--set", "rounds=1", **told)

        def paused() -> list[dict[str, Any]]:
            return prefect.post(
                "/flow_runs/filter", json={"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}}
            ).json()

        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline and not paused():
            assert run.poll() is None
            time.sleep(0.2)
        (held,) = paused()
        assert "round 1 waits" in held["state"]["message"]
        assert last(copy).info["state"] == "waiting"
        time.sleep(3 * APPROVAL_SECONDS)
        assert paused(), "it waits for a person"
        assert prefect.post(f"/flow_runs/{held['id']}/resume").json()["status"] == "ACCEPT"
        assert run.wait(timeout=HANG) == 0
        states = prefect.get("/flow_run_states/", params={"flow_run_id": held["id"]}).json()
    names = [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]
    assert names[-4:] == ["Running", "Paused", "Running", "NothingNew"]  # all was computed by the finished run
    assert (last(copy).id != before, last(copy).info["state"]) == (True, "done")


@pytest.mark.parametrize(
    ("after", "approved"), [((), False), (("RUNNING",), True), (("CRASHED", "SCHEDULED", "RUNNING"), False)]
)
def test_only_resume_counts_as_approval(after: tuple[str, ...], approved: bool) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    kinds = ("SCHEDULED", "RUNNING", "PAUSED", *after)
    states: list[State[Any]] = [
        State(type=StateType[kind], timestamp=begin + timedelta(seconds=number)) for number, kind in enumerate(kinds)
    ]
    assert followed_by_running(states[::-1], states[2]) is approved


def test_a_correction_that_cannot_be_used_is_refused_whole(copy: Path, tmp_path: Path) -> None:
    corrections = tmp_path / "corrections.csv"
    corrections.write_text("sample_id,label\ndigits/0000,notaclass\nnobody,3\n")
    refused = selftrain(copy, "labels", "apply", "last", str(corrections))
    assert refused.returncode == 2
    assert "notaclass" in refused.stderr
    assert not (copy / "corrections" / "tiny.csv").exists()


def test_a_run_that_does_not_wait_cannot_be_approved(copy: Path) -> None:
    refused = selftrain(copy, "approve", "last")
    assert refused.returncode == 2
    assert "does not wait" in refused.stderr
    assert json.loads(selftrain(copy, "status", "--json").stdout)["state"] == "done"
