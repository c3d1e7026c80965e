"""Chooses the device of tensors and the number format of networks."""

import contextlib
import os
from contextlib import AbstractContextManager

import torch

from selftrain.ssl_tasks.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device of a setting: `auto` is CUDA where there is one, else the CPU."""
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


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The format of matrix products: `auto` is bf16 where the hardware multiplies in it, else fp32."""
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision '{name}' is unknown; expected auto, fp32 or bf16")
    wanted = name == "bf16" or (name == "auto" and has_native_bf16(device))
    return torch.bfloat16 if wanted else torch.float32


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 is a gain: emulated bf16 is slower than fp32.

    On a CPU both the processor must have it and oneDNN must use it, which ONEDNN_MAX_CPU_ISA can forbid.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    in_processor = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return in_processor and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computed_by(device: torch.device, *dtypes: torch.dtype) -> dict[str, str]:
    """Device, number format and instruction set, on which the last digits of a result depend; kept in manifests.

    It is no part of a key: a result of another machine is reused.
    """
    cpu = device.type == "cpu"
    return {
        "device": str(device) if cpu else torch.cuda.get_device_name(device),
        "precision": ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def autocast(device: torch.device, dtype: torch.dtype, moving: bool = False) -> AbstractContextManager[object]:
    """Products in `dtype`, everything delicate in fp32; nothing at all for fp32.

    Torch keeps each weight's cast until the context ends, and does not notice where an optimizer changes the weight:
    say `moving` where weights change inside.
    """
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=not moving)


def prepare_backends(precision: str, threads: int | None) -> None:
    """Makes a run repeatable bit for bit on the same machine and settings.

    On CUDA, cuDNN may choose only algorithms that repeat, and never by racing them: some per cent of speed. Torch's
    other operators repeat where they can; the few that cannot warn. On a CPU all that we use repeats for one number of
    threads. fp32 means fp32: TF32 is left to runs that ask for less precision anyway.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for in order to repeat
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a check for other people's bugs, at a price
    # The older of torch's two ways: torch.export still reads it, and fails where the newer one was used.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
