"""One stack for all tests here; what is left of it is killed, whatever happens."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.api import Api
from tests.stack.servers import Stack
from tests.stack.team import RECIPE, Team, digests, listen


@pytest.fixture(scope="session")
def team() -> Iterator[Team]:
    """Servers, a worker, and one undisturbed run whose results all others must reproduce."""
    folder = Path(tempfile.mkdtemp(prefix="selftrain-stack-"))
    folder.chmod(0o755)  # PostgreSQL's user passes through
    stack = Stack(folder)
    told: list[str] = []
    webhook = listen(told)
    try:
        stack.start_all()
        port = webhook.server_address[1]
        pools = stack.command("prefect-init")[1:]
        done = stack.selftrain(*pools, "--notify", f"http://127.0.0.1:{port}/")
        assert done.returncode == 0, done.stderr
        stack.start_worker()
        api = Api(stack.url("prefect-server"), stack.variables["PREFECT_AUTH"])
        with api.http:
            yield _first_run(Team(stack, api, told))
    finally:
        stack.stop_all()
        webhook.shutdown()
        webhook.server_close()
        shutil.rmtree(folder)


def _first_run(team: Team) -> Team:
    (team.stack.folder / "tiny.yaml").write_text(RECIPE)
    team.deployment = team.deploy()
    started = team.start("undisturbed")
    state = team.api.wait_for(started.id, "COMPLETED", "FAILED", "CRASHED")
    assert state["type"] == "COMPLETED", team.api.story(started.id)
    done = team.stack.selftrain("--workspace", str(started.workspace), "sync")  # a slow MLflow may not have it all yet
    assert done.returncode == 0, done.stderr
    team.expected = digests(started.run)
    return team
