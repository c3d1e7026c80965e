"""Stages as Prefect tasks: order, names, retries and states. The store alone decides what is done."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from httpx import HTTPError
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.states import Completed
from prefect.tasks import Task, exponential_backoff

from selftrain.ssl_tasks.errors import Transient
from selftrain.ssl_tasks.execution.execute import Outcome, Request
from selftrain.ssl_tasks.execution.gpus import needed, visible_gpus
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, RuntimeSettings, TunedSettings

log = logging.getLogger("selftrain")
GPU_LIMIT = "gpu"  # the server's count of GPUs; workers obey it where SELFTRAIN_GPU_LIMIT names it
LEASE_SECONDS = 60  # a killed holder's slots are free again after about that long
VERBS = {"dataset": "read the data", "train": "train", "given": "take", "predict": "label", "select": "select"}


def person_name(request: Request, round_number: int) -> str:
    """train student · round 2 · wrn-28-4"""
    subject = request.name.rsplit("-", 1)[0] if round_number else request.name
    verb = "fine-tune" if isinstance(request.section, TunedSettings) else VERBS.get(request.stage, "")
    subject = subject.replace("finetune", "student")
    words = [f"{verb} {subject}" if request.stage in ("train", "given") else request.stage]
    if request.stage not in ("train", "given") and not round_number and request.name != request.stage:
        words = [request.name.replace("-", " ")]
    if round_number:
        words.append(f"round {round_number}")
    if isinstance(request.section, LearnerSettings):
        words.append(request.section.model.label)
    return " · ".join(words)


def as_task(request: Request, round_number: int, answer: Callable[[], Outcome], retries: int) -> Outcome:
    """Runs a stage as a Prefect task; a reused stage ends in a state named Cached that carries its key."""
    outcomes: list[Outcome] = []

    @task(
        name=request.stage,
        task_run_name=person_name(request, round_number),
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=exponential_backoff(2),
        retry_jitter_factor=0.3,
        retry_condition_fn=_can_be_cured,
    )
    def stage() -> State[Any]:
        outcomes.append(answer())
        reused = outcomes[-1].reused
        return Completed(name="Cached" if reused else "Completed", message=f"{request.name} {request.key[:12]}")

    state: State[Any] = stage(return_state=True)
    state.result()  # raises what the stage raised
    return outcomes[-1]


def gpu_slots(stage: str, runtime: RuntimeSettings) -> AbstractContextManager[None]:
    """A share of the GPUs that the hosts of a server have; on one host the kernel's locks decide which."""
    limit = os.environ.get("SELFTRAIN_GPU_LIMIT")
    if not limit or not needed(stage, runtime) or runtime.device == "cpu" or not visible_gpus():
        return nullcontext()
    return _slots(limit, needed(stage, runtime))


@contextmanager
def _slots(limit: str, count: int) -> Iterator[None]:
    """Holds slots of a limit. A stage does not fail for a server that is away just then: its host's locks hold."""
    slots = concurrency(limit, occupy=count, lease_duration=LEASE_SECONDS)
    try:
        slots.__enter__()
    except ConcurrencySlotAcquisitionError as error:
        log.warning(
            "the stage runs without a slot of the concurrency limit '%s', because Prefect gave none: %s", limit, error
        )
        yield
        return
    try:
        yield
    finally:
        try:
            slots.__exit__(None, None, None)
        except HTTPError as error:
            log.warning("a slot of '%s' could not be returned to Prefect; its lease will end: %s", limit, error)


def _can_be_cured(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, Transient) or isinstance(getattr(error, "__cause__", None), Transient)
