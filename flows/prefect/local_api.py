"""Prefect's API inside our own process: no server to start, no port to choose, no orphan left after a kill.

It asks for a password, which our child processes find in the environment.
"""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from selftrain.flows.prefect.database import prepare_database
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.execution.collection import uncollected
from selftrain.ssl_tasks.execution.listening import HOST, Guard, listen, own_password
from selftrain.ssl_tasks.execution.safe_path import in_environment
from selftrain.ssl_tasks.store.artifacts import file_lock
from selftrain.ssl_tasks.tracking.spool import without_password

# The catalogue of block types, for the UI's forms: two seconds in a fresh database, and the import of every plugin.
WITHOUT_BLOCKS = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
START_SECONDS = 600.0  # of a machine that has much else to do; a failure is seen at once


@contextlib.contextmanager
def prefect_api(workspace: Path, services: bool = False, port: int = 0) -> Iterator[str]:
    """The API's URL: the user's server where PREFECT_API_URL names one, else one in a thread of this process.

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
            settings.PREFECT_SERVER_CORS_ALLOWED_ORIGINS: "",  # the UI's requests are of the same origin
            settings.PREFECT_UI_API_URL: "/api",
        }
        prepare_database()
        # Two processes must not set up a fresh workspace together.
        with file_lock(workspace / "prefect.lock"), settings.temporary_settings(known):
            listener = listen(port)
            port = listener.getsockname()[1]
            app = Guard(create_app(), port)
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", proxy_headers=False))

            def answer() -> None:
                with settings.temporary_settings(known):  # a thread begins without its starter's settings
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
    """The address of the user's server, empty where the API is our own: its database is in the workspace."""
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
    """The errors that the server logs, a line each: of a traceback, the exception. None of it reaches the terminal."""
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
    """An error in one sentence where no Prefect API answers at this address."""
    import httpx

    address = without_password(url)
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=10).raise_for_status()
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in (401, 403):  # the client will send the credentials that Prefect knows
            raise SelftrainError(
                f"PREFECT_API_URL={address} answers {error.response.status_code}; expected 200. Check its log"
            ) from error
    except httpx.HTTPError as error:
        raise SelftrainError(
            f"PREFECT_API_URL={address} cannot be reached ({type(error).__name__}). Start that server, or unset the "
            "variable to run without one."
        ) from error


def _drain() -> None:
    """The last logs and states are sent by threads; wait for them before the API goes."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    with contextlib.suppress(Exception):  # their own shutdown must not hide how the run ended
        APILogWorker.drain_all(timeout=10, at_exit=False)
        EventsWorker.drain_all(timeout=10, at_exit=False)
