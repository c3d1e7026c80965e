"""`selftrain up`: both UIs, a deployment that runs when it is asked to, and nobody left when it is told to stop."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.flows.claims import assert_nobody_is_left, claims_to_run, marked
from tests.flows.own_folder import at_home, installed, own_folder
from tests.flows.tiny import last, selftrain, states

T = TypeVar("T")
PATIENCE = 300.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@contextmanager
def up(workspace: Path, folder: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """The command as a person starts it in a folder; whatever is left of it is killed."""
    line = installed(workspace, "up", *words, "--port", "0", "--mlflow-port", "0")
    given = at_home(SELFTRAIN_TEST=str(workspace))
    with (workspace / "up.err").open("w") as errors:
        process = subprocess.Popen(
            line, env=given, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    try:
        yield process
    finally:
        for one in marked(str(workspace)):
            one.kill()
        process.communicate()


def addresses(process: "subprocess.Popen[str]") -> dict[str, str]:
    """What it prints first: where Prefect and MLflow are."""
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(2)]
    assert [line[:1] for line in lines] == [["Prefect"], ["MLflow"]], lines
    return dict(lines)


def eventually(answer: Callable[[], T | None], process: "subprocess.Popen[str]") -> T:
    """Polls until there is an answer, while the command lives."""
    deadline = time.monotonic() + PATIENCE
    while not (found := answer()):
        assert process.poll() is None, "it ended by itself; see up.err"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def get(url: str) -> httpx.Response | None:
    """A page, or None where there is none yet."""
    try:
        answer = httpx.get(url, timeout=30, follow_redirects=True)
    except httpx.TransportError:
        return None
    return answer if answer.is_success else None


class Asked:
    """Runs of the one deployment, asked for as the UI's button does."""

    def __init__(self, api: str, process: "subprocess.Popen[str]") -> None:
        self.api, self.process = api, process
        by_name = f"{api}/deployments/name/self-training/tiny"
        self.deployment = eventually(partial(get, by_name), process).json()

    def run(self, steps: int, name: str | None = None) -> str:
        """Asks for a run whose first student learns for so long."""
        config = self.deployment["parameters"]["config"]
        config["rounds"][0]["student"]["train"]["steps"] = steps
        url = f"{self.api}/deployments/{self.deployment['id']}/create_flow_run"

        def answer() -> httpx.Response | None:
            """Prefect's own client asks again, too, where its server's SQLite is busy."""
            found = httpx.post(url, json={"parameters": {"config": config}, "name": name}, timeout=60)
            return None if found.status_code == 503 else found

        found = eventually(answer, self.process)
        assert found.is_success, f"{found.status_code}: {found.text}"
        return str(found.json()["id"])

    def ended(self, flow_run: str) -> dict[str, Any] | None:
        """The state that a run has ended in."""
        answer = get(f"{self.api}/flow_runs/{flow_run}")
        state = answer.json()["state"] if answer is not None else {}
        return state if state.get("type") in ENDED else None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_deployment_runs_when_it_is_asked_to_and_a_signal_ends_it_all(
    tmp_path: Path, copy: Path, recipe: str
) -> None:
    with up(copy, own_folder(tmp_path / "home"), recipe, "--set", "rounds=1") as process:
        at = addresses(process)
        for url in at.values():
            assert "<html" in eventually(partial(get, url), process).text
        asked = Asked(f"{at['Prefect']}/api", process)
        short = asked.run(steps=20, name="of-monday")
        assert eventually(partial(asked.ended, short), process)["type"] == "COMPLETED"
        assert last(copy).info["prefect_flow_run"] == short
        page = get(f"{at['Prefect']}/api/flow_runs/{short}")
        assert page is not None
        assert page.json()["name"] == "of-monday"
        computed = {name for name, state in states(last(copy)).items() if state == "computed"}
        assert computed == {"student-1", "evaluate-1", "gate-1"}
        asked.run(steps=1_000_000)
        eventually(lambda: list(copy.glob("store/attempts/train-*/scratch/*")), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 130, (copy / "up.err").read_text()
        assert_nobody_is_left(str(copy))
    next_one = selftrain(copy, "run", recipe, "--set", "rounds=[]")
    assert next_one.returncode == 0, next_one.stderr
    assert claims_to_run(copy) == [], "the next command tells everybody what became of it"
