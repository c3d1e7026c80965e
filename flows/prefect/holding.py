"""A run that waits for a person, in Prefect: it is Paused there, and `Resume` approves as `selftrain approve` does."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import SetStateStatus
from prefect.runtime import flow_run
from prefect.states import Paused

from selftrain.ssl_tasks.store.runs import Run

log = logging.getLogger("selftrain")
PAUSE_SECONDS = 2.0  # between two looks at a paused run
PAUSED = "paused in Prefect; press Resume there to continue"


@contextlib.contextmanager
def paused(round_number: int) -> Iterator[Callable[[], bool]]:
    """Pauses our flow run for the time of the block; yields whether a person has pressed Resume.

    The process stays, and so does the pause: without a limit of time it never expires. A block that ends by an error
    (a cancellation, a stopped process) does not change the state.
    """
    identity = UUID(flow_run.get_id())
    message = (
        f"round {round_number} waits for approval. Review its pseudo-labels, then press Resume, or "
        "run `selftrain approve` on its worker"
    )
    with get_client(sync_client=True) as client:
        pause: State[Any] | None = None
        with _patient("cannot be paused"):
            answer: OrchestrationResult[Any] = client.set_flow_run_state(identity, Paused(message=message))
            pause = answer.state if answer.status is SetStateStatus.ACCEPT else None

        def resumed() -> bool:
            with _patient("cannot be read"):
                return pause is not None and followed_by_running(client.read_flow_run_states(identity), pause)
            return False

        yield resumed
        with _patient("cannot be resumed"):
            if pause is not None and not resumed():
                client.resume_flow_run(identity)


def wait_while_paused(run: Run) -> None:
    """Begins no stage while a person has paused the flow run; a stage that computes already ends first.

    The run's own pause, for a round that waits for approval, is left to `paused`.
    """
    identity, told = UUID(flow_run.get_id()), False
    with get_client(sync_client=True) as client:
        while (state := _state(client, identity)) is not None and state.is_paused() and not run.info.get("waits_for"):
            if not told:
                told = True
                log.warning("%s is paused in Prefect; press Resume there to start the next stage", run.id)
                run.update(state="waiting", stopped=PAUSED)
                with _patient("cannot be updated"):  # the person sees it on the run's page
                    message = f"{PAUSED}; no stage is running"
                    client.set_flow_run_state(identity, state.model_copy(update={"message": message}), force=True)
            time.sleep(PAUSE_SECONDS)
    if told:
        run.update(state="running", stopped="")


def _state(client: SyncPrefectClient, identity: UUID) -> State[Any] | None:
    """The flow run's state, None where the server is away."""
    with _patient("cannot be read"):
        return client.read_flow_run(identity).state
    return None


def followed_by_running(states: Sequence[State[Any]], pause: State[Any]) -> bool:
    """Whether Resume was pressed. A run that crashed, or was cancelled, and runs again elsewhere was not approved."""
    after = sorted((one for one in states if one.timestamp > pause.timestamp), key=lambda one: one.timestamp)
    return bool(after) and after[0].is_running()


@contextlib.contextmanager
def _patient(what: str) -> Iterator[None]:
    """A server that is away just now must not end a run that a person may look at for days."""
    try:
        yield
    except httpx.HTTPError as error:
        log.warning(
            "Prefect's flow run %s: %s. To approve a round without Prefect: selftrain approve",
            what,
            type(error).__name__,
        )
