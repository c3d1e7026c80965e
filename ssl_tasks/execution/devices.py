"""Chooses the devices and the number format of a stage, and leases GPUs.

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


LOOK_AGAIN = 0.2  # seconds between two attempts to lease busy GPUs


def needed(stage: str, runtime: RuntimeSettings) -> int:
    """Returns the number of GPUs that a stage needs on a host with GPUs; a stage that needs none never waits."""
    return {"train": runtime.processes, "features": 1, "predict": 1, "evaluate": 1}.get(stage, 0)


@contextlib.contextmanager
def lease(device: str, processes: int) -> Iterator[str]:
    """Waits for one GPU per process, holds them within the block, and yields the device's name among the leased GPUs.

    The kernel frees them if the process dies. On a CPU nothing is leased.
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
        return list(
            dict.fromkeys(itertools.takewhile(lambda name: name not in ("", "-1"), names))
        )  # CUDA ignores the names after an invalid one
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def _named(device: str, gpus: list[str]) -> list[str]:
    """Returns all GPUs, or for `cuda:1` the second that we may use, which need not be the host's second."""
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
    """Locks `count` GPUs, or none if fewer are free, so that two waiting stages cannot block each other."""
    held: list[str] = []
    with file_lock(_lock_file("gpus")):  # one at a time, or two stages that want all GPUs could get half each
        for gpu in wanted:
            if len(held) < count:
                with contextlib.suppress(BlockingIOError):
                    stack.enter_context(file_lock(_lock_file(f"gpu-{gpu}"), blocking=False))
                    held.append(gpu)
        if len(held) < count:
            stack.close()
    return held


def _lock_file(name: str) -> Path:
    """Returns the path of a lock that every user of the host can take, independent of their umask and order."""
    folder = Path(os.environ.get("SELFTRAIN_LOCKS", "/tmp/selftrain-locks"))
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    path = folder / f"{name.replace('/', '-')}.lock"  # some MIG names have slashes
    with contextlib.suppress(FileExistsError):  # an existing file, perhaps a link, is left unchanged
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.fchmod(descriptor, 0o666)
        os.close(descriptor)
    return path


def resolve_device(name: str) -> "torch.device":
    """Returns the device of a setting: `auto` is CUDA if the machine has it, else the CPU."""
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
    """Returns the number format of matrix products: `auto` is bf16 if the hardware multiplies in it, else fp32."""
    import torch

    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision '{name}' is unknown; expected auto, fp32 or bf16")
    wanted = name == "bf16" or (name == "auto" and has_native_bf16(device))
    return torch.bfloat16 if wanted else torch.float32


def has_native_bf16(device: "torch.device") -> bool:
    """Returns whether the hardware multiplies in bf16; emulated bf16 is slower than fp32.

    On a CPU both the processor must have it and oneDNN must use it, which ONEDNN_MAX_CPU_ISA can forbid.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    in_processor = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return in_processor and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computed_by(device: "torch.device", *dtypes: "torch.dtype") -> dict[str, str]:
    """Returns the device, number format and instruction set, on which a result's last digits depend; for manifests.

    They are not part of a cache key, so the result of another machine is reused.
    """
    import torch

    cpu = device.type == "cpu"
    return {
        "device": str(device) if cpu else torch.cuda.get_device_name(device),
        "precision": ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def autocast(device: "torch.device", dtype: "torch.dtype", moving: bool = False) -> AbstractContextManager[object]:
    """Returns a context that computes matrix products in `dtype` and sensitive operations in fp32.

    Torch caches each weight's cast until the context ends and does not notice that an optimizer changes the weight.
    Set `moving` if weights change inside. For fp32 the context does nothing.
    """
    import torch

    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=not moving)


def prepare_backends(precision: str, threads: int | None) -> None:
    """Makes a run repeatable bit for bit on the same machine and settings.

    On CUDA, cuDNN may use only deterministic algorithms and may not benchmark them, which costs some per cent of speed.
    Torch's other operators are deterministic where possible; the few that are not print a warning. On a CPU, all
    operators that we use are deterministic for a fixed number of threads. With fp32, TF32 is switched off.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs time
    # The older of torch's two interfaces: torch.export still reads it, and fails after the newer one was used.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
