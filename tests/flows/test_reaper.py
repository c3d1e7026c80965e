"""A flow run whose process died and left no record is ended too, with its task runs."""

import json
from pathlib import Path

from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.states import Running

from selftrain.flows.prefect.server import prefect_api
from selftrain.flows.prefect.tasks import process_tag, tell_prefect
from selftrain.ssl_tasks.store.runs import owner
from tests.flows.claims import rows


def test_a_flow_run_without_a_record_crashes_with_its_process(tmp_path: Path) -> None:
    dead = "process:" + json.dumps({**owner(), "pid": 2**22 + 1})  # no process has so large a number
    with prefect_api(tmp_path), get_client(sync_client=True) as client:
        ours = flow(lambda: None, name="self-training")
        runs = {
            what: client.create_flow_run(ours, tags=[tag], state=Running()).id
            for what, tag in (("dead", dead), ("alive", process_tag()), ("somebody's", "nightly"))
        }
        tasks = {
            what: client.create_task_run(task(lambda: None), number, dynamic_key="0", state=Running()).id
            for what, number in runs.items()
        }
        tell_prefect(tmp_path, "")
        states = {what: client.read_flow_run(number).state for what, number in runs.items()}
        task_states = {what: client.read_task_run(number).state for what, number in tasks.items()}
    assert {what: state.name for what, state in task_states.items() if state} == {
        "dead": "Crashed",
        "alive": "Running",
        "somebody's": "Running",
    }
    assert {what: state.name for what, state in states.items() if state} == {
        "dead": "Crashed",
        "alive": "Running",
        "somebody's": "Running",
    }


def test_the_mark_is_the_flow_runs_alone(finished: Path) -> None:
    """Prefect asks for a concurrency slot for each tag of a task: a fifth of a second each time."""
    database = finished / "prefect" / "prefect.db"
    assert rows(database, "select distinct tags from task_run") == [("[]",)]
    ((tags,),) = rows(database, "select tags from flow_run")
    assert json.loads(tags)[0].startswith("process:")
