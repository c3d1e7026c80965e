"""Starts Prefect's API inside this process, or prepares a team's server for our flows.

Our own API needs no extra process and no fixed port, and leaves no orphan after a kill. It asks for a password, which
our child processes find in the environment. `init_server` sets up a team's server, and is safe to repeat: work pools,
the number of GPUs, the automation that notices runs whose process died, the automation that restarts them, and
notifications to a webhook.
"""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from selftrain.flows.prefect.database import prepare_database
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.execution.listening import HOST, Guard, listen, own_password
from selftrain.ssl_tasks.execution.startup import in_environment, uncollected
from selftrain.ssl_tasks.store.locks import file_lock
from selftrain.ssl_tasks.tracking.spool import without_password

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.actions import ActionTypes
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

# Names that our flows and the server's automations share.
CHAMPION = "selftrain.champion"  # the event: a run's model became the champion; payload: model, verdict, run
NOTHING_NEW = "NothingNew"  # the name of the completed state of a run that found nothing to compute
RESTARTED = "crashed; it resumes at its checkpoints"  # the message of the state that a restarted run is put in
GPU_LIMIT = "gpu"  # the server's number of GPUs; workers respect it if SELFTRAIN_GPU_LIMIT names it
# The catalogue of block types, for the UI's forms: two seconds in a fresh database, and the import of every plugin.
WITHOUT_BLOCKS = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
START_SECONDS = 600.0  # enough for a busy machine; a failure is noticed at once
HEARTBEAT_SECONDS = 30  # set for workers (PREFECT_FLOWS_HEARTBEAT_FREQUENCY); Prefect's minimum
PATIENCE = timedelta(seconds=3 * HEARTBEAT_SECONDS)
PAUSE = timedelta(seconds=15)  # pause before a crashed run is scheduled again
WEBHOOK = "selftrain-notifications"
ENDED = ("Completed", NOTHING_NEW, "Failed", "Cancelled", "Crashed")


@contextlib.contextmanager
def prefect_api(workspace: Path, services: bool = False, port: int = 0) -> Iterator[str]:
    """Yields the API's URL: the user's server if PREFECT_API_URL names one, else a server in a thread of this process.

    `services` adds schedules, the UI and the other loops of a real server (for `selftrain up`).
    """
    if url := os.environ.get("PREFECT_API_URL"):
        check_reachable(url)
        try:
            yield url
        finally:
            _drain()
        return
    os.environ["PREFECT_UI_ENABLED"] = "1" if services else "0"
    if not services:
        os.environ.update(PREFECT__SERVER_EPHEMERAL="1", **WITHOUT_BLOCKS)
    with uncollected():
        import uvicorn
        from prefect import settings
        from prefect.server.api.server import create_app  # not public: the version is pinned, a test guards it

        password = (
            settings.PREFECT_SERVER_API_AUTH_STRING.value()
            or settings.PREFECT_API_AUTH_STRING.value()
            or own_password()
        )
        known = {
            settings.PREFECT_SERVER_API_AUTH_STRING: password,
            settings.PREFECT_API_AUTH_STRING: password,
            settings.PREFECT_SERVER_CORS_ALLOWED_ORIGINS: "",  # the UI's requests have the same origin
            settings.PREFECT_UI_API_URL: "/api",
        }
        prepare_database()
        # Two processes must not set up a new workspace at the same time.
        with file_lock(workspace / "prefect.lock"), settings.temporary_settings(known):
            listener = listen(port)
            port = listener.getsockname()[1]
            app = Guard(create_app(), port)
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", proxy_headers=False))

            def answer() -> None:
                with settings.temporary_settings(
                    known
                ):  # a thread does not inherit the settings of the thread that starts it
                    server.run(sockets=[listener])

            thread = threading.Thread(target=answer, daemon=True, name="prefect-api")
            with contextlib.ExitStack() as on_failure, _complaints() as complaints:
                on_failure.callback(listener.close)
                thread.start()
                _wait_until_started(server, thread, complaints)
                on_failure.pop_all()
    url = f"http://{HOST}:{port}/api"
    no_heartbeat = {settings.PREFECT_API_URL: url, settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with in_environment({"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": password}):  # children inherit them
        try:
            with settings.temporary_settings({**known, **no_heartbeat}):
                yield url
        finally:
            _drain()
            server.should_exit = True
            thread.join(10)


def server_in_use(workspace: Path) -> str:
    """Returns the address of the user's server; empty for our own API, whose database is in the workspace."""
    own = os.environ.get("PREFECT_HOME") == str(workspace / "prefect")
    return "" if own else without_password(os.environ.get("PREFECT_API_URL", ""))


def _wait_until_started(server: object, thread: threading.Thread, complaints: list[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not getattr(server, "started", False):
        if not thread.is_alive() or time.monotonic() > deadline:
            reason = complaints[0] if complaints else f"no answer within {START_SECONDS:g} s"
            raise SelftrainError(f"Prefect's API did not start: {reason}. Check this machine: selftrain doctor")
        time.sleep(0.02)


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects the server's errors, one line each, instead of printing them; of a traceback, only the exception."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines = self.format(record).strip().splitlines()
            # SQLAlchemy adds the statement, and a link, in further lines.
            said.extend([line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)][-1:] or lines[-1:])

    logger, listener = logging.getLogger("uvicorn.error"), Listener(level=logging.ERROR)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)
        logger.propagate = before


def check_reachable(url: str) -> None:
    """Raises an error of one sentence if no Prefect API answers at this address."""
    import httpx

    address = without_password(url)
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=10).raise_for_status()
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in (401, 403):  # the client will send Prefect's credentials
            raise SelftrainError(
                f"PREFECT_API_URL={address} answers {error.response.status_code}; expected 200. Check its log"
            ) from error
    except httpx.HTTPError as error:
        raise SelftrainError(
            f"PREFECT_API_URL={address} cannot be reached ({type(error).__name__}). Start that server, or unset the "
            "variable to run without one."
        ) from error


def _drain() -> None:
    """Waits for the threads that send the last logs and states, before the API ends."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    with contextlib.suppress(Exception):  # an error of the shutdown must not hide how the run ended
        APILogWorker.drain_all(timeout=10, at_exit=False)
        EventsWorker.drain_all(timeout=10, at_exit=False)


def init_server(pools: Sequence[str], gpus: int, notify: str | None = None) -> list[str]:
    """Creates what is missing and updates what differs; returns the state of each, line by line."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        lines = [ensure_pool(client, pool) for pool in pools]
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, gpus)
        lines.append(f"concurrency limit {GPU_LIMIT}: {gpus}")
        wanted = [dead_runs(), restarts()]
        if notify is not None:
            wanted += notifications(_webhook(client, notify))
        lines += [_ensure_automation(client, automation) for automation in wanted]
    return lines


def ensure_pool(client: "SyncPrefectClient", name: str) -> str:
    """Creates a process pool of this name; an existing one is not changed."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        return f"work pool {name}: {client.read_work_pool(name).type}"
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        except ObjectAlreadyExists:  # another process was faster
            return f"work pool {name}: process"
    return f"work pool {name}: process, created"


def dead_runs() -> "AutomationCore":
    """Marks a run as crashed if its process sends no sign of life, as after a power cut or a kill of its worker."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    trigger = _of_runs(
        after={heartbeat},
        expect={heartbeat, *(f"prefect.flow-run.{state}" for state in ENDED)},
        posture=Posture.Proactive,
        within=PATIENCE,
    )
    message = f"no sign of life for {PATIENCE.total_seconds():.0f} s: its process has probably died"
    return AutomationCore(
        name="selftrain: mark silent runs as crashed",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def restarts() -> "AutomationCore":
    """Schedules a crashed run again, which resumes at its checkpoints; runtime.restarts limits how often.

    It pauses first, because a worker of Prefect 3.8 fails if it gets a run back while it is still cleaning it up.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, Posture

    on_its_way = ("Scheduled", "AwaitingRetry", "Pending", "Running", *(end for end in ENDED if end != "Crashed"))
    trigger = _of_runs(
        after={"prefect.flow-run.Crashed"},
        expect={f"prefect.flow-run.{state}" for state in on_its_way},
        posture=Posture.Proactive,
        within=PAUSE,
    )
    return AutomationCore(
        name="selftrain: resume crashed runs",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, message=RESTARTED)],
    )


def notifications(webhook: "UUID") -> list["AutomationCore"]:
    """Reports failed runs and new champions to a webhook as JSON {"text": …}, which chat programs accept."""
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    def told(text: str) -> list["ActionTypes"]:
        return [CallWebhook(block_document_id=webhook, payload='{"text": {{ (' + text + ") | tojson }}}")]

    return [
        AutomationCore(
            name="selftrain: notify of failed runs",
            trigger=_of_runs(expect={"prefect.flow-run.Failed"}),
            actions=told('"self-training failed: " ~ flow_run.name ~ ": " ~ flow_run.state.message'),
        ),
        AutomationCore(
            name="selftrain: notify of new champions",
            trigger=EventTrigger(expect={CHAMPION}, threshold=1),
            actions=told('"new champion of " ~ event.payload.model ~ ": " ~ event.payload.verdict'),
        ),
    ]


def _of_runs(**options: object) -> "EventTrigger":
    """Returns a trigger for each of our flow runs separately."""
    from prefect.events.schemas.automations import EventTrigger

    related = {"prefect.resource.role": "flow", "prefect.resource.name": "self-training"}
    return EventTrigger.model_validate(
        {
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": related,
            "for_each": {"prefect.resource.id"},
            "threshold": 1,
            **options,
        }
    )


def _ensure_automation(client: "SyncPrefectClient", wanted: "AutomationCore") -> str:
    there = client.read_automations_by_name(wanted.name)
    if not there:
        client.create_automation(wanted)
        return f"automation {wanted.name}: created"
    client.update_automation(there[0].id, wanted)
    for double in there[1:]:
        client.delete_automation(double.id)
    return f"automation {wanted.name}"


def _webhook(client: "SyncPrefectClient", url: str) -> "UUID":
    """Stores the address in a block, which Prefect encrypts, because it may contain a token."""
    from prefect.blocks.webhook import Webhook
    from prefect.types import SecretDict
    from pydantic import SecretStr

    headers = SecretDict({"Content-Type": "application/json"})
    identity = Webhook(method="POST", url=SecretStr(url), headers=headers).save(WEBHOOK, overwrite=True)
    assert isinstance(identity, UUID), "outside of an event loop Prefect answers at once"
    return identity
