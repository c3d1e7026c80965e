"""What a Ray worker does for the stage `predict`: it labels one shard, with the code that labels it at home."""

import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from selftrain.ssl_tasks.data.dataset import Pool
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import StageContext
from selftrain.ssl_tasks.pseudo_labels.predicting.predict import Predicting, open_predicting
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.mirror import mirror_of
from selftrain.ssl_tasks.training.parallel.launch import from_json


def label_shard(shared: Mapping[str, Any], images: tuple[int, Sequence[str]]) -> bytes:
    """The file of one shard: `images` are the position of its first image, and the ids of all."""
    predicting, pool = opened(json.dumps(shared["context"]))
    refuse_other_answers(shared["question"], predicting.question(shared["temperature"]))
    means = torch.from_numpy(shared["means"].copy()).to(predicting.teachers[0].device)
    return predicting.content(pool, *images, shared["temperature"], means)


@lru_cache(maxsize=1)
def opened(asked: str) -> tuple[Predicting, Pool]:
    """Teachers and images, kept for the worker's next shard."""
    context = from_json(json.loads(asked))
    threads = context.runtime.threads or 1  # Ray counts on it: cluster.cpus_of
    here = at_hand(replace(context, runtime=context.runtime.model_copy(update={"threads": threads}), events=None))
    predicting = open_predicting(here)
    return predicting, predicting.dataset.pool("unlabeled")


def at_hand(context: StageContext) -> StageContext:
    """The inputs where this machine has them: under the same path as at home, else from the shared store."""
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
    # No cache of decoded images: it would begin with all of them, and this machine sees a few.
    runtime = context.runtime.model_copy(update={"cache": "off"})
    return replace(context, inputs=inputs, cache=workspace / "cache", runtime=runtime)


def refuse_other_answers(asked: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """A machine that would compute otherwise must not fill in a shard: the same question has the same bytes."""
    if others := sorted(name for name in asked if asked[name] != here[name]):
        name = others[0]
        raise ConfigError(
            f"this machine would answer with {name} {here[name]}, the run asked for {asked[name]}. Set "
            "predict.precision and runtime.device (GPUs: runtime.gpus_per_task) so that both are alike"
        )
