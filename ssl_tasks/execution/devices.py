"""Chooses the devices of a stage and its number format, and leases GPUs.

A GPU is leased to one stage at a time on a host, for all users. Torch is imported only in the functions that need it,
never for a lease.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.locks import file_lock

if TYPE_CHECKING:
    import torch

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
    """Returns the GPUs that this process may use, by number, UUID or MIG name, without importing torch."""
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


def resolve_device(name: str) -> "torch.device":
    """Returns the device of a setting: `auto` is CUDA where there is one, else the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}' is unknown; expected auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{name}' is not there: this machine has {torch.cuda.device_count()} CUDA devices. "
            "Set runtime.device to auto or cpu."
        )
    return device


def resolve_precision(name: str, device: "torch.device") -> "torch.dtype":
    """Returns the format of matrix products: `auto` is bf16 where the hardware multiplies in it, else fp32."""
    import torch

    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision '{name}' is unknown; expected auto, fp32 or bf16")
    wanted = name == "bf16" or (name == "auto" and has_native_bf16(device))
    return torch.bfloat16 if wanted else torch.float32


def has_native_bf16(device: "torch.device") -> bool:
    """Returns whether bf16 is a gain: emulated bf16 is slower than fp32.

    On a CPU both the processor must have it and oneDNN must use it, which ONEDNN_MAX_CPU_ISA can forbid.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    in_processor = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return in_processor and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computed_by(device: "torch.device", *dtypes: "torch.dtype") -> dict[str, str]:
    """Returns device, number format and instruction set: a result's last digits depend on them; manifests keep them.

    It is no part of a key: a result of another machine is reused.
    """
    import torch

    cpu = device.type == "cpu"
    return {
        "device": str(device) if cpu else torch.cuda.get_device_name(device),
        "precision": ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def autocast(device: "torch.device", dtype: "torch.dtype", moving: bool = False) -> AbstractContextManager[object]:
    """Products in `dtype`, everything delicate in fp32; nothing at all for fp32.

    Torch keeps each weight's cast until the context ends, and does not notice where an optimizer changes the weight:
    say `moving` where weights change inside.
    """
    import torch

    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=not moving)


def prepare_backends(precision: str, threads: int | None) -> None:
    """Makes a run repeatable bit for bit on the same machine and settings.

    On CUDA, cuDNN may choose only algorithms that repeat, and never by racing them: some per cent of speed. Torch's
    other operators repeat where they can; the few that cannot warn. On a CPU all that we use repeats for one number of
    threads. fp32 means fp32: TF32 is left to runs that ask for less precision anyway.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for in order to repeat
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a check for other people's bugs, at a price
    # The older of torch's two ways: torch.export still reads it, and fails where the newer one was used.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
