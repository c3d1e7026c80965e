"""Training on a sixth of a second's scale: digits, a tiny network, and processes that can be killed."""

import contextlib
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

TRAIN = {"steps": 24, "batch_size": 8, "unlabeled_ratio": 2, "log_every": 4, "evaluate_every": 8, "precision": "fp32"}
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["selftrain.ssl_tasks.preload"])


def learner(
    method: Mapping[str, Any] | None = None, model: Mapping[str, Any] | None = None, **train: Any
) -> LearnerSettings:
    """A small learner, with what a test wants otherwise."""
    return LearnerSettings.model_validate(
        {
            "model": model or {"name": "mlp", "width": 16},
            "method": method or {"name": "supervised"},
            "train": {**TRAIN, **train},
        }
    )


def digits(workspace: Path, **split: Any) -> Artifact:
    """The built-in digits with five labels a class."""
    data = DataSettings(split=SplitSettings(**{"labels_per_class": 5, **split}))
    request = Request("dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", data)
    return execute(request, workspace, RuntimeSettings(threads=1)).artifact


def request_of(section: LearnerSettings, inputs: Mapping[str, Artifact], seed: int = 0) -> Request:
    """The question that a training stage answers."""
    return Request("train", "train", 1, "selftrain.ssl_tasks.training.stage:train_model", section, inputs, seed=seed)


def train_in(
    workspace: Path, section: LearnerSettings, inputs: Mapping[str, Artifact], seed: int = 0, **runtime: Any
) -> Artifact:
    """Trains in this process and commits the artifact; decoded images lie where the data set was made."""
    cache = inputs["dataset"].path.parents[2] / "cache"
    workspace.mkdir(parents=True, exist_ok=True)
    if not (workspace / "cache").exists():
        (workspace / "cache").symlink_to(cache)
    settings = RuntimeSettings(**{"threads": 1, "device": "cpu", **runtime})
    return execute(request_of(section, inputs, seed), workspace, settings).artifact


def train_apart(
    workspace: Path, section: LearnerSettings, dataset: Artifact, body: Callable[..., Any] = train_in, **runtime: Any
) -> Any:
    """Starts the same in a process of its own, which a test may kill; it has been started when this returns."""
    process = FORKSERVER.Process(target=body, args=(workspace, section, {"dataset": dataset}), kwargs=runtime)
    process.start()
    return process


def kill(process: Any) -> None:
    """SIGKILL; then its loaders too, who would notice within seconds and hold its locks until then."""
    loaders = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for loader in loaders:
        with contextlib.suppress(psutil.NoSuchProcess):
            loader.kill()
    process.join()


def history_of(model: Artifact) -> pd.DataFrame:
    """The history as a table."""
    return pd.read_parquet(model.file("history.parquet"))


def folder_of(workspace: Path, section: LearnerSettings, dataset: Artifact) -> Path:
    """Returns the folder of a training's checkpoints."""
    key = request_of(section, {"dataset": dataset}).key
    return workspace / "store" / "attempts" / f"train-{key}" / "scratch" / "checkpoints"


def weights_of(model: Artifact, name: str = "model.safetensors") -> dict[str, np.ndarray]:
    """A model's weights as arrays."""
    from safetensors.numpy import load_file

    return load_file(model.file(name))
