"""Moments of a training run at which a process stops, as SIGSTOP would stop it, until a test kills it."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch

from selftrain.ssl_tasks.settings.run_config import LearnerSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.training import checkpoints, run
from tests.training.small_runs import train_in

MOMENTS: Mapping[str, tuple[ModuleType, str]] = {  # the function that the moment lies in
    "evaluation": (run, "_score"),
    "half of a checkpoint": (safetensors.torch, "save_file"),
    "a checkpoint that has its name": (checkpoints, "flush_folder"),
}


def train_until(
    moment: str, workspace: Path, section: LearnerSettings, inputs: Mapping[str, Artifact], **runtime: Any
) -> None:
    """Trains, and stops where it comes to the moment for the second time."""
    module, name = MOMENTS[moment]
    setattr(module, name, stopping(moment, getattr(module, name)))
    train_in(workspace, section, inputs, **runtime)


def stopping(moment: str, honest: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose second call stops the process."""
    calls = itertools.count(1)

    def stop(*arguments: Any, **named: Any) -> Any:
        if next(calls) != 2:
            return honest(*arguments, **named)
        if moment == "half of a checkpoint":
            honest(*arguments, **named)
            os.truncate(arguments[1], arguments[1].stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGSTOP)
        return time.sleep(3600)  # a thread may run on for a moment after its process was told to stop

    return stop
