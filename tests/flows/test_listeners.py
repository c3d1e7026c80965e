"""Prefect's API of `run` and `serve`: it listens on this machine alone, and strangers are refused."""

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests import foreign
from tests.flows.claims import marked
from tests.flows.faulty import let_go, run_faulty, wait_for_the_mark
from tests.flows.tiny import command, environment


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
def test_the_api_of_a_run_lets_in_its_own_processes_alone(copy: Path, recipe: str, tmp_path: Path) -> None:
    run = run_faulty(copy, recipe, "held", TELL_PASSWORD=str(tmp_path / "password"))
    try:
        wait_for_the_mark(copy, run)
        process, password = psutil.Process(run.pid), (tmp_path / "password").read_text()
        assert foreign.raw_requests(api_of(process), password) == foreign.LET_IN
        assert foreign.tellers(process, copy, password) == []
        assert password not in let_go(copy, run)
        assert foreign.tellers(psutil.Process(), copy, password) == []
    finally:
        for one in marked(str(copy)):
            one.kill()
        run.communicate()


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
