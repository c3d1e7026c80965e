"""Stores pretrained weights, checks that networks accept them, and joins them with models that hold a difference.

The stage `weights` keeps the file that a network starts from, and what is known of it. A model whose body was frozen
or adapted stores the tensors that differ from that file, with the file's digest; reading it puts both together.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftrain.models import ModelSettings, build_model
from selftrain.models.pretrained import read_weights
from selftrain.models.settings import Normalisation
from selftrain.models.sources import Facts, obtain
from selftrain.models.tuning import tune
from selftrain.ssl_tasks.errors import ConfigError, DamagedArtifact
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.settings.run_config import CheckSettings, WeightsSettings
from selftrain.ssl_tasks.store.artifacts import MANIFEST, Artifact, digest_file, read_manifest
from selftrain.ssl_tasks.trained import BASE

FACTS = "weights.json"


def take_weights(context: StageContext) -> StageResult:
    """Runs the stage `weights`: fetches the file if necessary, and stores it with the facts about it."""
    settings = context.section
    assert isinstance(settings, WeightsSettings)

    def report(done: int, total: int) -> None:
        context.progress(done, total, "fetch")

    source = obtain(ModelSettings(name=settings.network, pretrained=settings.pretrained), report)
    assert source.file is not None
    if source.file.suffix == ".pth":
        save_file({name: one.contiguous() for name, one in read_weights(source.file).items()}, context.output / BASE)
    else:
        shutil.copyfile(source.file, context.output / BASE)
    facts = source.facts.model_dump()
    (context.output / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return StageResult(summary={"bytes": source.file.stat().st_size, **facts})


def check_network(context: StageContext) -> StageResult:
    """Runs the stage `check`: builds the network, loads its weights and freezes layers, or says what does not fit."""
    settings, info = context.section, dataset_info(context.inputs["dataset"])
    assert isinstance(settings, CheckSettings)
    model = with_file(settings.model, context.inputs.get("weights"))
    channels, image_size = info["channels"], info["image_size"]
    facts = facts_of(context.inputs.get("weights"))
    normalisation_of(settings.model, facts.normalisation if facts else None, channels)
    network = build_model(model, len(info["classes"]), channels, image_size)
    tune(network, settings.tune, settings.lora)
    trained = sum(one.numel() for one in network.parameters() if one.requires_grad)
    counts = {"parameters": sum(one.numel() for one in network.parameters()), "trained_parameters": trained}
    (context.output / "network.json").write_text(json.dumps(counts) + "\n")
    return StageResult(summary=counts)


def dataset_info(dataset: Artifact) -> dict:
    """Returns the classes, channels and image size of a data set."""
    return json.loads(dataset.file("info.json").read_text())


def with_file(model: ModelSettings, weights: Artifact | None) -> ModelSettings:
    """Returns the settings with the stored file in place of the named weights."""
    return model if weights is None else model.model_copy(update={"pretrained": str(weights.file(BASE))})


def facts_of(weights: Artifact | None) -> Facts | None:
    """Returns the known facts about weights; None without weights."""
    return None if weights is None else Facts.model_validate_json(weights.file(FACTS).read_text())


def normalisation_of(model: ModelSettings, own: Normalisation | None, channels: int) -> Normalisation | None:
    """Returns the mean and deviation for a network whose weights have `own`; None for those of the labelled images."""
    chosen = own if model.preprocess == "backbone" else None
    if isinstance(model.preprocess, Normalisation):
        chosen = model.preprocess
    if chosen is not None and len(chosen.mean) != channels:
        raise ConfigError(
            f"model.preprocess: the mean has {len(chosen.mean)} channels and the images have {channels}; set "
            f"data.channels: {len(chosen.mean)}, or model.preprocess: data"
        )
    return chosen


def body_tensors(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file of weights under the names that a classifier gives them."""
    found = load_file(file)
    ours = any(name.startswith("body.") for name in found)
    return found if ours else {f"body.{name}": tensor for name, tensor in found.items()}


def difference(state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a state that differ from the file of weights."""

    def same(name: str, tensor: Tensor) -> bool:
        other = base.get(name)
        return other is not None and other.dtype == tensor.dtype and torch.equal(other, tensor.cpu())

    return {name: tensor for name, tensor in state.items() if not same(name, tensor)}


def base_file(folder: Path, digest: str) -> Path:
    """Returns the file of weights that a model in `folder` differs from: beside the model, or in its store."""
    beside, places = folder / BASE, []
    if beside.is_file():
        places.append(beside)
    if (folder / MANIFEST).is_file():
        used = read_manifest(folder)["inputs"].get("weights")
        places += [folder.parent.parent / used["stage"] / used["key"] / BASE] if used else []
    for place in places:
        if place.is_file() and digest_file(place) == digest:
            return place
    raise DamagedArtifact(
        f"{folder} holds what tuning changed, and the weights that it started from (sha256 {digest[:12]}…) are "
        f"neither beside it as {BASE} nor in its store. Run the recipe again, or copy the file there."
    )
