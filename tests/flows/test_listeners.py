"""Prefect's API of `run` and `serve`: it listens on this machine alone, and strangers are refused."""

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests import foreign
from tests.flows.faulty import let_go, run_faulty, wait_for_the_mark
from tests.flows.tiny import command, environment

PASSWORD = "PREFECT_API_AUTH_STRING"


def api_of(process: psutil.Process) -> str:
    """The address of its API, beside which nothing speaks to strangers."""
    deadline = time.monotonic() + 300
    while not (found := foreign.listeners(process)):
        assert process.is_running()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert {host for host, _ in found} == {"127.0.0.1"}
    (api,) = [one for one in found if not foreign.is_deaf(one)]
    return f"http://{api[0]}:{api[1]}"


@pytest.mark.slow
def test_the_api_of_a_run_lets_in_its_own_processes_alone(copy: Path, recipe: str) -> None:
    run = run_faulty(copy, recipe, "held")
    wait_for_the_mark(copy, run)
    process = psutil.Process(run.pid)
    told = [one.environ().get(PASSWORD) for one in process.children(recursive=True)]
    (password,) = {one for one in told if one}
    assert foreign.raw_requests(api_of(process), password) == foreign.LET_IN
    assert foreign.tellers(process, copy, password) == []
    let_go(copy, run)
    assert foreign.tellers(psutil.Process(), copy, password) == []


@pytest.mark.slow
def test_the_api_of_serve_asks_for_the_password_that_a_person_has_set(fresh: Path, recipe: str) -> None:
    mine = "me:a-password-of-my-own-choice"
    given = environment(PREFECT_SERVER_API_AUTH_STRING=mine)
    with (fresh / "serve.err").open("w") as errors:
        serve = subprocess.Popen(command(fresh, "serve", recipe), env=given, stdout=subprocess.PIPE, stderr=errors)
    try:
        assert serve.stdout is not None
        assert b"serving" in serve.stdout.readline(), (fresh / "serve.err").read_text()
        process = psutil.Process(serve.pid)
        assert foreign.raw_requests(api_of(process), mine) == foreign.LET_IN
        assert foreign.tellers(process, fresh, mine) == []
    finally:
        serve.terminate()
        serve.communicate()
