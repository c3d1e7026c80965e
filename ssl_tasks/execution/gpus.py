"""Chooses the GPUs of a stage: those that no other stage on this host holds, of any user."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import file_lock

LOOK_AGAIN = 0.2  # seconds between two looks at GPUs that are busy


def needed(stage: str, runtime: RuntimeSettings) -> int:
    """Returns the number of GPUs that a stage needs, if there are any; stages without GPUs never wait."""
    return {"train": runtime.processes, "predict": 1, "evaluate": 1}.get(stage, 0)


@contextlib.contextmanager
def lease(device: str, processes: int) -> Iterator[str]:
    """Waits for a GPU for each process, holds them, and yields what the device is called where they alone are seen.

    The kernel frees them on any death. Nothing on a CPU.
    """
    gpus = visible_gpus() if processes and device.startswith(("auto", "cuda")) else []
    if not gpus:
        yield device
        return
    wanted = _named(device, gpus)
    count = min(processes, len(wanted))
    with contextlib.ExitStack() as stack:
        while len(held := _take(stack, wanted, count)) < count:
            time.sleep(LOOK_AGAIN)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        yield device.partition(":")[0]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by number, UUID or MIG name, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = (name.strip() for name in visible.split(","))
        return list(dict.fromkeys(itertools.takewhile(lambda name: name not in ("", "-1"), names)))  # CUDA stops there
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def _named(device: str, gpus: list[str]) -> list[str]:
    """All of them, or for `cuda:1` the second of those that we may use, which need not be the host's second."""
    _, colon, index = device.partition(":")
    if not colon:
        return gpus
    if not index.isdecimal() or int(index) >= len(gpus):
        raise ConfigError(
            f"device '{device}' is not there: this process may use {len(gpus)} GPUs ({', '.join(gpus)}), counted from "
            "cuda:0. Set runtime.device to one of them, or to auto."
        )
    return [gpus[int(index)]]


def _take(stack: contextlib.ExitStack, wanted: list[str], count: int) -> list[str]:
    """Locks so many GPUs, or none where fewer are free: a waiting stage holds none, so none waits for ever."""
    held: list[str] = []
    with file_lock(_lock_file("gpus")):  # one looks at a time: two that want all do not find half each
        for gpu in wanted:
            if len(held) < count:
                with contextlib.suppress(BlockingIOError):
                    stack.enter_context(file_lock(_lock_file(f"gpu-{gpu}"), blocking=False))
                    held.append(gpu)
        if len(held) < count:
            stack.close()
    return held


def _lock_file(name: str) -> Path:
    """A lock that every user of the host can take, whatever the order and the umask of users."""
    folder = Path(os.environ.get("SELFTRAIN_LOCKS", "/tmp/selftrain-locks"))
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    path = folder / f"{name.replace('/', '-')}.lock"  # some MIG names have slashes
    with contextlib.suppress(FileExistsError):  # what is there, a link perhaps, is left as it is
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.fchmod(descriptor, 0o666)
        os.close(descriptor)
    return path
