"""`selftrain up`: who is let in, both UIs, a deployment that runs when it is asked to, and an end without remains."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests import foreign
from tests.browser import Browser
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


@dataclass
class Server:
    """One of the two servers, by the link that is printed."""

    link: str

    @property
    def address(self) -> str:
        return self.link.partition("/open#")[0]

    @property
    def password(self) -> str:
        return self.link.partition("/open#")[2]

    def request(self, method: str, path: str, known: bool = True, **more: Any) -> httpx.Response:
        """An answer to one who knows the password, or does not."""
        auth = httpx.BasicAuth(*self.password.split(":", 1)) if known else None
        return httpx.request(method, self.address + path, timeout=60, auth=auth, **more)

    def get(self, path: str) -> httpx.Response | None:
        """A page, or None where there is none yet."""
        try:
            answer = self.request("GET", path, follow_redirects=True)
        except httpx.TransportError:
            return None
        return answer if answer.is_success else None


def servers(process: "subprocess.Popen[str]") -> tuple[Server, Server]:
    """Reads the two links that are printed first: Prefect's and MLflow's."""
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(2)]
    assert [line[:1] for line in lines] == [["Prefect"], ["MLflow"]], lines
    return Server(lines[0][1]), Server(lines[1][1])


def eventually(answer: Callable[[], T | None], process: "subprocess.Popen[str] | None" = None) -> T:
    """Polls until there is an answer, while the command lives."""
    deadline = time.monotonic() + PATIENCE
    while not (found := answer()):
        assert process is None or process.poll() is None, "it ended by itself; see up.err"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


class Asked:
    """Runs of the one deployment, asked for as the UI's button does."""

    def __init__(self, prefect: Server, process: "subprocess.Popen[str]") -> None:
        self.prefect, self.process = prefect, process
        by_name = "/api/deployments/name/self-training/tiny"
        self.deployment = eventually(partial(prefect.get, by_name), process).json()

    def run(self, steps: int, name: str | None = None) -> str:
        """Asks for a run whose first student learns for so long."""
        config = self.deployment["parameters"]["config"]
        config["rounds"][0]["student"]["train"]["steps"] = steps
        path = f"/api/deployments/{self.deployment['id']}/create_flow_run"

        def answer() -> httpx.Response | None:
            """Prefect's own client asks again, too, where its server's SQLite is busy."""
            found = self.prefect.request("POST", path, json={"parameters": {"config": config}, "name": name})
            return None if found.status_code == 503 else found

        found = eventually(answer, self.process)
        assert found.is_success, f"{found.status_code}: {found.text}"
        return str(found.json()["id"])

    def ended(self, flow_run: str) -> dict[str, Any] | None:
        """The state that a run has ended in."""
        answer = self.prefect.get(f"/api/flow_runs/{flow_run}")
        state = answer.json()["state"] if answer is not None else {}
        return state if state.get("type") in ENDED else None


def refuse_a_foreign_page(asked: Asked, browser: Browser, owned: Path) -> None:
    """The attack that executed a shell command: its first request fails."""
    prefect = asked.prefect
    with foreign.another_origin() as page:
        said = foreign.attack(browser, page, f"{prefect.address}/api", f"touch {owned}")
    assert said == ["TypeError: Failed to fetch"]
    only = {"deployments": {"id": {"any_": [asked.deployment["id"]]}}}
    assert prefect.request("POST", foreign.FILTER, json=only).json() == [], "no run was asked for"


def refuse_strangers_in_mlflow(mlflow: Server) -> None:
    """They would read, alter and delete what was tracked, and register models."""
    make = partial(mlflow.request, "POST", "/api/2.0/mlflow/experiments/create", json={"name": "of a stranger"})
    strangers: list[dict[str, str]] = [
        {"Host": f"10.evil.example:{urlsplit(mlflow.address).port}"},  # MLflow alone takes this for a private address
        {"Origin": "http://localhost:1"},  # and lets in the pages of every port
        {"Origin": "https://evil.example"},
    ]
    assert eventually(partial(mlflow.get, "/")).is_success
    assert make(known=False).status_code == 401
    assert [make(headers=one).status_code for one in strangers] == [403, 403, 403]
    named = mlflow.request("GET", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=of+a+stranger")
    assert named.status_code == 404


def open_both_in_a_browser(prefect: Server, mlflow: Server, browser: Browser) -> None:
    """The printed links log in, and the pages show what they ask the servers for."""
    for server, seen in ((prefect, "tiny"), (mlflow, "selftrain")):
        browser.open_address(server.link)
        if server is prefect:
            eventually(lambda: browser.driver.current_url.endswith("/dashboard"))
            browser.driver.get(f"{prefect.address}/deployments")
        eventually(lambda seen=seen: seen in str(browser.run("return document.body.innerText")))
        assert "#selftrain:" not in browser.driver.current_url
        refused = [one for one in browser.complaints() if "(Unauthorized)" in one or "(Forbidden)" in one]
        assert [one for one in refused if not one.startswith(f"{server.address}/ - ")] == []  # which the link asks for


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(1200)
def test_a_deployment_needs_the_password_and_a_signal_ends_every_process(
    tmp_path: Path, copy: Path, recipe: str, browser: Browser
) -> None:
    with up(copy, own_folder(tmp_path / "home"), recipe, "--set", "rounds=1") as process:
        prefect, mlflow = servers(process)
        asked = Asked(prefect, process)
        refuse_a_foreign_page(asked, browser, tmp_path / "owned")
        assert foreign.raw_requests(prefect.address, prefect.password) == foreign.LET_IN
        refuse_strangers_in_mlflow(mlflow)
        ports = {("127.0.0.1", urlsplit(server.address).port) for server in (prefect, mlflow)}
        found = foreign.listeners(psutil.Process(process.pid))
        assert {one for one in found if not foreign.is_deaf(one)} == ports
        open_both_in_a_browser(prefect, mlflow, browser)
        short = asked.run(steps=20, name="of-monday")
        assert eventually(partial(asked.ended, short), process)["type"] == "COMPLETED"
        assert last(copy).info["prefect_flow_run"] == short
        assert prefect.get(f"/api/flow_runs/{short}").json()["name"] == "of-monday"
        computed = {name for name, state in states(last(copy)).items() if state == "computed"}
        assert computed == {"student-1", "evaluate-1", "gate-1"}
        asked.run(steps=1_000_000)
        eventually(lambda: list(copy.glob("store/attempts/train-*/scratch/*")), process)
        assert foreign.tellers(psutil.Process(process.pid), copy, prefect.password) == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 130, (copy / "up.err").read_text()
        assert_nobody_is_left(str(copy))
    assert not (tmp_path / "owned").exists()
    next_one = selftrain(copy, "run", recipe, "--set", "rounds=[]")
    assert next_one.returncode == 0, next_one.stderr
    assert claims_to_run(copy) == [], "the next command tells everybody what became of it"
