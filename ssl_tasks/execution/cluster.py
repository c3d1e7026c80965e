"""Runs one function over many items as tasks of a Ray cluster. Only this module imports Ray.

The workers import the function by its name, as a stage's process imports its body; they need the same version of this
package. Only plain values and arrays are sent. If a worker dies, another worker repeats its task.
"""

import contextlib
import logging
import os
import signal
import socket
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from selftrain.ssl_tasks import errors
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import StageContext, load_body
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.mirror import mirror_of

Key = TypeVar("Key")
RETRIES = 3  # times that a task is repeated after its worker died
AHEAD = 2  # tasks handed out per task that can run at once, so that no worker waits for its next one
START_HINT = "Start one (`ray start --head`; elsewhere `ray start --address=HOST:6379`), set runtime.ray_address or "


def spread(
    function: str, shared: object, items: Iterable[tuple[Key, object]], runtime: RuntimeSettings
) -> Iterator[tuple[Key, Any]]:
    """Yields (key, function(shared, item)) for every (key, item) as soon as it is done; `function`: module:function."""
    with joined(runtime) as ray:
        options = {"num_cpus": cpus_of(runtime), "num_gpus": runtime.gpus_per_task, "max_retries": RETRIES}
        task = ray.remote(answer).options(**options, name=function.rpartition(":")[2])
        handed, ahead = ray.put(shared), iter(items)
        waiting: dict[object, Key] = {}
        while True:
            room = AHEAD * places(ray, runtime) - len(waiting)
            waiting |= {task.remote(function, handed, item): key for key, item in islice(ahead, max(room, 0))}
            if not waiting:
                return
            done, _ = ray.wait(list(waiting), timeout=1.0)  # machines may have joined since
            for reference in done:
                yield waiting.pop(reference), received(ray, reference)


def answer(function: str, shared: object, item: object) -> dict[str, Any]:
    """Runs one task on its worker. An error is returned as its message, so that no object of ours is pickled."""
    try:
        return {"value": load_body(function)(shared, item)}  # type: ignore[call-arg, arg-type]
    except Exception as error:  # noqa: BLE001 - the run must be told of any error
        traceback.print_exc()
        return {**errors.describe(error), "host": socket.gethostname()}


def received(ray: ModuleType, reference: object) -> Any:
    """Returns the result of a task, or raises its error."""
    try:
        found = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise errors.SelftrainError(
            f"a task died with its Ray worker {RETRIES + 1} times ({reason}). It may lack memory: lower batch_size, or "
            "give it more with runtime.threads. What was finished is kept: run again"
        ) from error
    if "error" not in found:
        return found["value"]
    raise errors.described({**found, "message": f"{found['message']} (on the Ray worker {found['host']})"})


@contextlib.contextmanager
def joined(runtime: RuntimeSettings) -> Iterator[ModuleType]:
    """Yields Ray, connected to the cluster within the block; raises ConfigError if it cannot connect."""
    try:
        import ray
    except ImportError as error:
        raise errors.ConfigError(
            "runtime.task_runner: ray needs Ray, which is not installed here. Try: pip install 'selftrain[ray]', or "
            "set runtime.task_runner to local"
        ) from error
    if ray.is_initialized():  # connected by the caller, who also disconnects
        yield ray
        return
    address = runtime.ray_address or os.environ.get("RAY_ADDRESS") or "auto"
    refuse_deaf(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise errors.ConfigError(
            f"this machine cannot join the Ray cluster '{address}': {reason}. {START_HINT}RAY_ADDRESS; this machine "
            "must be part of it. Or set runtime.task_runner to local"
        ) from error
    signal.signal(signal.SIGTERM, handler)  # undo Ray's own handler, which ends without a checkpoint
    try:
        refuse_too_small(ray, runtime)
        yield ray
    finally:
        ray.shutdown()


def refuse_deaf(address: str) -> None:
    """Raises ConfigError if no cluster answers at the address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise errors.ConfigError(
            f"no Ray cluster answers at {address} ({error.strerror or error}). {START_HINT}RAY_ADDRESS, or "
            "runtime.task_runner to local"
        ) from error


def refuse_too_small(ray: ModuleType, runtime: RuntimeSettings) -> None:
    """Raises ConfigError if no machine has room for a task, which would then wait for ever."""
    if places(ray, runtime):
        return
    found = [f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in machines(ray)]
    raise errors.ConfigError(
        f"no machine of the Ray cluster has room for a task of {cpus_of(runtime)} CPUs (runtime.threads) and "
        f"{runtime.gpus_per_task:g} GPUs (runtime.gpus_per_task); found {'; '.join(found) or 'no machine'}"
    )


def machines(ray: ModuleType) -> list[dict[str, float]]:
    """Returns the resources of each live machine."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def places(ray: ModuleType, runtime: RuntimeSettings) -> int:
    """Returns how many tasks can run at the same time."""
    cpus, gpus = cpus_of(runtime), runtime.gpus_per_task
    room = [
        min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else float("inf")) for node in machines(ray)
    ]
    return int(sum(room))


def cpus_of(runtime: RuntimeSettings) -> int:
    """Returns the number of CPUs that one task uses."""
    return runtime.threads or 1


def at_hand(context: StageContext) -> StageContext:
    """Returns the context with inputs of this machine.

    An input is at the same path as on the run's machine, or it is fetched from the shared store."""
    hidden = [one.path for one in context.inputs.values() if not one.path.is_dir()]
    if not hidden:
        return context
    mirror = mirror_of(context.runtime)
    if mirror is None:
        raise ConfigError(
            f"{hidden[0]} is not on {socket.gethostname()}. Ray's workers need the workspace under the same path (a "
            "shared disk), or a shared store: set runtime.store"
        )
    workspace = Path(os.environ.get("SELFTRAIN_HOME") or Path(tempfile.gettempdir()) / "selftrain-ray")
    store = Store(workspace / "store")
    inputs: dict[str, Artifact] = {}
    for role, one in context.inputs.items():
        with store.lock(one.stage, one.key):
            found = store.find(one.stage, one.key) or mirror.fetch(store, one.stage, one.key)
        if found is None:
            raise ConfigError(
                f"{one.stage} {one.key[:12]} is neither on {socket.gethostname()} nor in {mirror.url}; was the shared "
                "store away when it was made? Run again: it is offered again"
            )
        inputs[role] = found
    # No cache of decoded images: it would first decode all images, and this machine needs only a few of them.
    runtime = context.runtime.model_copy(update={"cache": "off"})
    return replace(context, inputs=inputs, cache=workspace / "cache", runtime=runtime)
