"""Runs recipes by a schedule, on this machine (`selftrain up`) or on the workers of a team's server (`deploy`).

`up` is one foreground process without Docker: Prefect's API and services in a thread, MLflow as a child, and a runner
that starts a process for every scheduled run. Ctrl-C, SIGTERM or the end of the terminal ends them all.
"""

import contextlib
import difflib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from selftrain.flows.environment import make_workspace, set_environment
from selftrain.flows.prefect.server import check_reachable, ensure_pool, prefect_api, server_in_use
from selftrain.flows.rounds.interruption import interruptible
from selftrain.flows.rounds.pipeline import mend_dead_runs
from selftrain.ssl_tasks.errors import ConfigError, cut
from selftrain.ssl_tasks.execution.listening import HOST, entrance, listen, own_password
from selftrain.ssl_tasks.execution.startup import folder_hides_us, parent_of_mine, safe_path
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.tracking.client import artifact_folder, connect, default_uri
from selftrain.ssl_tasks.tracking.lineage import announced
from selftrain.ssl_tasks.tracking.spool import without_password

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

log = logging.getLogger("selftrain")
SHORTEST_SECONDS, LONGEST_SECONDS = 1, 366 * 24 * 3600
SCHEDULES = {
    "cron": 'minute, hour, day, month and weekday, for example --cron "0 2 * * *" for two o\'clock each night',
    "rrule": "a rule of iCalendar, for example --rrule FREQ=DAILY;BYHOUR=2",
}
GRACE_SECONDS = 10.0  # seconds between asking MLflow's server to end and killing it


@dataclass(frozen=True)
class Schedule:
    """The schedule of a recipe: one of cron, interval and rrule, or only on demand."""

    cron: str | None = None
    interval: float | None = None  # seconds
    rrule: str | None = None
    timezone: str | None = None  # an IANA name; UTC by default

    def __post_init__(self) -> None:
        given = [value for value in (self.cron, self.interval, self.rrule) if value is not None]
        if len(given) > 1:
            raise ConfigError("found several schedules; expected one of --cron, --interval and --rrule")
        if self.interval is not None and not SHORTEST_SECONDS <= self.interval <= LONGEST_SECONDS:
            raise ConfigError(
                f"--interval is {self.interval:g}; expected {SHORTEST_SECONDS} to {LONGEST_SECONDS:,} seconds (a year)"
            )
        for option, text in (("cron", self.cron), ("rrule", self.rrule)):
            if text is not None and not _known_to_prefect(option, text):
                raise ConfigError(f"--{option} '{cut(text)}' is not a schedule; expected {SCHEDULES[option]}")
        if self.timezone is not None:
            if not given:
                raise ConfigError("--timezone is given without a schedule; add --cron, --interval or --rrule")
            _require_zone(self.timezone)

    def __str__(self) -> str:
        parts = {"cron": self.cron, "every": self.interval and f"{self.interval:g} s", "rrule": self.rrule}
        words = [f"{name} {value}" for name, value in parts.items() if value is not None]
        return f"{words[0]} ({self.timezone or 'UTC'})" if words else "on demand"

    def as_options(self) -> dict[str, Any]:
        """Returns the schedule as options of Prefect's deployments; empty if the recipe runs on demand."""
        if self.cron is None and self.interval is None and self.rrule is None:
            return {}
        from prefect.schedules import Schedule as PrefectSchedule

        interval = None if self.interval is None else timedelta(seconds=self.interval)
        return {"schedule": PrefectSchedule(interval, self.cron, self.rrule, self.timezone)}


def _require_zone(name: str) -> None:
    """Raises ConfigError unless Prefect knows a time zone of this name; the message names the nearest one."""
    from prefect.client.schemas.schedules import is_valid_timezone

    if is_valid_timezone(name):
        return
    zones = zoneinfo.available_timezones()
    known = {zone.rpartition("/")[2].casefold(): zone for zone in zones} | {zone.casefold(): zone for zone in zones}
    close = difflib.get_close_matches(name.casefold(), known, n=1)
    tail = f" Did you mean '{known[close[0]]}'?" if close else ""
    raise ConfigError(
        f"--timezone '{cut(name)}' is not a time zone; expected an IANA name, for example Europe/Berlin or UTC.{tail}"
    )


def _known_to_prefect(option: str, text: str) -> bool:
    """Returns whether Prefect accepts a schedule's text; call `set_environment` first, because it imports Prefect."""
    from prefect.client.schemas.schedules import construct_schedule

    try:
        if not text:
            return False
        construct_schedule(cron=text) if option == "cron" else construct_schedule(rrule=text)
    except ValueError:  # pydantic's error is a ValueError
        return False
    return True


def up(
    workspace: Path, recipes: Sequence[RunConfig], schedule: Schedule, port: int = 4200, mlflow_port: int = 5000
) -> None:
    """Serves Prefect, MLflow and the scheduled recipes until it is interrupted."""
    workspace.mkdir(parents=True, exist_ok=True)
    set_environment(workspace)
    mend_dead_runs(workspace)
    with (
        prefect_api(workspace, services=True, port=port) as api,
        mlflow_ui(workspace, mlflow_port) as ui,
        announced(workspace, ui),
    ):
        from selftrain.flows.prefect.tasks import tell_prefect

        tell_prefect(workspace, server_in_use(workspace))
        known = os.environ.get("PREFECT_API_AUTH_STRING") == own_password()  # else the user has set the password
        prefect = api.removesuffix("/api")
        print(f"Prefect  {entrance(prefect) if known else without_password(prefect)}", flush=True)
        print(f"MLflow   {without_password(ui) if ui == default_uri(workspace) else entrance(ui)}", flush=True)
        serve(workspace, recipes, schedule)


def serve(workspace: Path, recipes: Sequence[RunConfig], schedule: Schedule) -> None:
    """Registers the recipes with the API in use, and runs each when it is due; without recipes it waits."""
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from selftrain.flows.prefect.flow import self_training_flow

    if not recipes:
        print("no recipe to run; press Ctrl-C to stop", flush=True)
        with interruptible():
            threading.Event().wait()
    deployments = [
        RunnerDeployment.from_flow(
            self_training_flow,
            name=config.name,
            parameters={"config": config.model_dump(mode="json"), "workspace": str(workspace)},
            entrypoint_type=EntrypointType.MODULE_PATH,  # with a path, our folder would hide the package `models`
            concurrency_limit=1,  # one run per data set at a time
            **schedule.as_options(),
        )
        for config in recipes
    ]
    for config in recipes:
        print(f"serving  {config.name}  {schedule}", flush=True)
    os.environ.update({**safe_path(), **parent_of_mine()})  # for the processes that it starts
    if folder_hides_us():  # Prefect still looks into the current folder first
        make_workspace(workspace)
        os.chdir(workspace)
    _run_what_is_due(deployments)


def _run_what_is_due(deployments: "Sequence[RunnerDeployment]") -> None:
    """Runs Prefect's runner in a thread, where it leaves signals to the main thread, which ends it."""
    from anyio.from_thread import start_blocking_portal
    from prefect.runner import Runner

    runner = Runner()
    for deployment in deployments:
        runner.add_deployment(deployment)
    with start_blocking_portal() as portal, interruptible():
        serving = portal.start_task_soon(runner.start)
        try:
            serving.result()
        finally:
            serving.cancel()  # it ends the runs that it has started; leaving the portal waits for that


@contextlib.contextmanager
def mlflow_ui(workspace: Path, port: int) -> Iterator[str]:
    """Starts MLflow's server for the workspace within the block; yields its address, or that of the user's server."""
    uri = default_uri(workspace)
    if uri.startswith("http"):
        yield uri
        return
    connect(uri, workspace)  # sets up a new database before other processes use it
    path = workspace / "logs" / "mlflow.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with listen(port) as listener, path.open("a") as output:
        port, number = listener.getsockname()[1], listener.fileno()
        ours = f"{HOST}:{port},localhost:{port},[::1]:{port}"  # by default also `10.*`, as in 10.evil.example
        protected = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false",
            "MLFLOW_SERVER_ALLOWED_HOSTS": ours,
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port}",
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "selftrain.ssl_tasks.tracking.server"],
            env={**os.environ, **safe_path(), **protected},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[number],
            start_new_session=True,
        )
    told = {"uri": uri, "folder": str(artifact_folder(workspace)), "socket": number, "password": own_password()}
    try:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; its log says why
            child.stdin.write(json.dumps(told).encode() + b"\n")
            child.stdin.flush()
        yield f"http://{HOST}:{port}"
    finally:
        _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Ends a child's whole process group: asks it to end, and kills it if it does not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


@dataclass(frozen=True)
class Deployed:
    """A deployment on the server, and the flow run that was started at once, if any."""

    name: str  # self-training/NAME, as Prefect's commands take it
    id: str
    flow_run: str = ""


def deploy(
    config: RunConfig,
    name: str,
    pool: str,
    schedule: Schedule | None = None,
    workspace: Path | None = None,
    now: bool = False,
) -> Deployed:
    """Creates or updates the deployment. Workers import the flow from the installed package: no code is sent.

    Without a workspace, each worker uses its own (SELFTRAIN_HOME).
    """
    require_server()
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from selftrain.flows.prefect.flow import self_training_flow

    with get_client(sync_client=True) as client:
        ensure_pool(client, pool)
    schedule = schedule or Schedule()
    deployment = RunnerDeployment.from_flow(
        self_training_flow,
        name=name,
        parameters={
            "config": config.model_dump(mode="json"),
            **({"workspace": str(workspace)} if workspace is not None else {}),
        },
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        # One run of a data set at a time; the next one waits.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        **schedule.as_options(),
    )
    identity = deployment.apply()
    assert isinstance(identity, UUID), "outside of an event loop Prefect answers at once"
    with get_client(sync_client=True) as client:
        if not schedule.as_options():  # an update without a schedule would keep the old one
            for old in client.read_deployment_schedules(identity):
                client.delete_deployment_schedule(identity, old.id)
        flow_run = client.create_flow_run_from_deployment(identity).id if now else ""
    return Deployed(deployment.full_name, str(identity), str(flow_run))


def require_server() -> None:
    """Raises ConfigError unless PREFECT_API_URL names a server, and another error if the server does not answer."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigError(
            "found no Prefect server: PREFECT_API_URL is not set. With docker-compose.yml: "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api. "
            "Without a server, `selftrain up CONFIG --cron …` runs schedules on this machine."
        )
    check_reachable(url)
