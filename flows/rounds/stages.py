"""Defines the stages: for each, its version, its body, and the digests that its key depends on.

Raise a stage's version, or a method's version, when its results for the same inputs change; a test reminds you.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from selftrain.models.settings import ModelSettings, check_safetensors, weights_file
from selftrain.ssl_tasks.execution.stage import Request, StageContext, StageResult
from selftrain.ssl_tasks.methods import LABELS_ONLY
from selftrain.ssl_tasks.settings.data import AugmentSettings, DataSettings
from selftrain.ssl_tasks.settings.pseudo_labels import (
    CorrectedSettings,
    FeatureSettings,
    FrozenSettings,
    PredictSettings,
    SelectSettings,
)
from selftrain.ssl_tasks.settings.run_config import (
    CheckSettings,
    EvaluateSettings,
    GateSettings,
    LearnerSettings,
    WeightsSettings,
)
from selftrain.ssl_tasks.settings.section import RecipePath, Section, existing_file
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, digest_file
from selftrain.ssl_tasks.store.stage_names import FIRST
from selftrain.ssl_tasks.trained import copy_trained, trained_digest

VERSIONS = {
    **{"dataset": 2, "weights": 1, "check": 1, "features": 1, "train": 1, "given": 1},
    **{"predict": 1, "select": 1, "evaluate": 1, "gate": 1},
}
# Version of each method; raise it when the method's results change. Models of other methods stay valid.
METHOD_CHANGES = {
    **{"dividemix": 1, "label_propagation": 1, "meta_pseudo_labels": 2},
    **{"freematch": 1, "uda": 1, "vat": 2},  # changed for weight 0
}
BODIES = {
    "dataset": "selftrain.ssl_tasks.data.dataset:build_dataset",
    "weights": "selftrain.ssl_tasks.trained.weights:take_weights",
    "check": "selftrain.ssl_tasks.trained.weights:check_network",
    "features": "selftrain.ssl_tasks.features.stage:extract",
    "train": "selftrain.ssl_tasks.training.stage:train_model",
    "given": "selftrain.flows.rounds.stages:take_given",
    "predict": "selftrain.ssl_tasks.pseudo_labels.predict:predict",
    "select": "selftrain.ssl_tasks.pseudo_labels.select:select",
    "evaluate": "selftrain.ssl_tasks.evaluation.stage:evaluate",
    "gate": "selftrain.ssl_tasks.evaluation.gate:gate",
}
FIT_LINEAR = "selftrain.ssl_tasks.features.linear:train_linear"
ASK_NEIGHBORS = "selftrain.ssl_tasks.features.graph:predict_by_neighbors"


def dataset_request(data: DataSettings, fingerprint: str, name: str = FIRST.dataset) -> Request:
    """Returns the request for a data set's manifest; `fingerprint` is the digest of the source's contents."""
    return _request(name, "dataset", data, {}, {"source": fingerprint})


def features_request(
    name: str,
    settings: FeatureSettings,
    model: ModelSettings,
    dataset: Artifact,
    *,
    weights: Artifact | None = None,
    init: Artifact | None = None,
) -> Request:
    """Returns the request for the features of every image by a frozen network: a trained model or a new network."""
    quiet = {"dropout": 0.0, "stochastic_depth": 0.0, "batch_norm_momentum": None}  # a frozen network has no noise
    frozen = FrozenSettings(**dict(settings), model=model.model_copy(update=quiet))
    inputs, depends = {"dataset": dataset}, dict(dataset.parts)
    if init is not None:
        inputs["init"], depends["init"] = init, init.digest
    elif weights is not None:
        inputs["weights"], depends["pretrained"] = weights, weights.digest
    return _request(name, "features", frozen, inputs, depends)


def train_request(
    name: str,
    learner: LearnerSettings,
    dataset: Artifact,
    seed: int,
    selection: Artifact | None = None,
    init: Artifact | None = None,
    weights: Artifact | None = None,
    features: Artifact | None = None,
) -> Request:
    """Returns the request for a training; it depends on the unlabelled images only if its method uses them.

    Method `linear` reads `features` and depends on their network, but not on images that it does not learn from.
    """
    if features is not None:
        # There are no training steps, and the first weights are part of the backbone's digest.
        learner = learner.model_copy(update={"train": TrainSettings(), "augment": AugmentSettings()})
        init = None
    depends = {role: dataset.parts[role] for role in ("labeled", "validation")}
    if learner.method.name not in LABELS_ONLY or selection is not None:
        depends["unlabeled"] = dataset.parts["unlabeled"]
    if learner.train.median_of:
        depends["test"] = dataset.parts["test"]
    inputs = {"dataset": dataset}
    for role, artifact in (("selection", selection), ("init", init)):
        if artifact is not None:
            inputs[role] = artifact
            depends[role] = artifact.digest
    changes = METHOD_CHANGES.get(learner.method.name, 0)
    if features is not None:
        inputs["features"], depends["features"] = features, features.summary["backbone"]
        return replace(_request(name, "train", learner, inputs, depends, 0, changes), body=FIT_LINEAR)
    if weights is not None:
        inputs["weights"], depends["pretrained"] = weights, weights.digest
    return _request(name, "train", learner, inputs, depends, seed, changes)


def weights_request(name: str, model: ModelSettings) -> Request:
    """Returns the request for pretrained weights; those of a library, a hub or a URL are fetched only once."""
    assert model.pretrained is not None
    if (file := weights_file(model)) is not None:
        check_safetensors(file)
        depends = {"file": digest_file(file)}
    else:
        depends = {"source": str(model.pretrained)}
    return _request(name, "weights", WeightsSettings(network=model.name, pretrained=model.pretrained), {}, depends)


def check_request(name: str, learner: LearnerSettings, dataset: Artifact, weights: Artifact | None) -> Request:
    """Returns the request for a check that a network accepts its weights, before anything is trained."""
    train = learner.train
    section = CheckSettings(model=learner.model, tune=train.tune, lora=train.lora)
    inputs = {"dataset": dataset} if weights is None else {"dataset": dataset, "weights": weights}
    info = json.loads(dataset.file("info.json").read_text())
    depends = {"images": f"{info['channels']} channels, {info['image_size']} pixels"}
    return _request(name, "check", section, inputs, depends | ({} if weights is None else {"weights": weights.digest}))


def given_request(name: str, folder: Path) -> Request:
    """Returns the request for a trained model from outside, which replaces the teacher."""
    return _request(name, "given", GivenSettings(path=folder), {}, {"model": trained_digest(folder)})


def predict_request(
    name: str,
    settings: PredictSettings,
    dataset: Artifact,
    models: Sequence[Artifact],
    features: Sequence[Artifact | None] = (),
) -> Request:
    """Returns the request for pseudo-labels by one teacher or an ensemble; each reads its `features` if given.

    With a source other than the model, only the first teacher's features are read.
    """
    if settings.source != "model":
        inputs = {"dataset": dataset, "features": next(one for one in features if one is not None)}
        depends = {role: dataset.parts[role] for role in ("labeled", "unlabeled", "validation")}
        depends["features"] = inputs["features"].digest
        return replace(_request(name, "predict", settings, inputs, depends), body=ASK_NEIGHBORS)
    roles = {f"model_{number}" if number > 1 else "model": model for number, model in enumerate(models, 1)}
    depends = {role: dataset.parts[role] for role in ("unlabeled", "validation")}
    if settings.views == 1 and not settings.noise:  # else the network itself must compute
        stored = zip(list(roles), features, strict=False)
        roles |= {role.replace("model", "features"): one for role, one in stored if one is not None}
    depends |= {role: model.digest for role, model in roles.items()}
    return _request(name, "predict", settings, {"dataset": dataset, **roles}, depends)


def select_request(
    name: str,
    settings: SelectSettings,
    dataset: Artifact,
    predictions: Artifact,
    previous: Artifact | None,
    corrections: Path | None = None,
) -> Request:
    """Returns the request for a selection of pseudo-labels; corrections of the previous round are carried over."""
    depends = {**dataset.parts, "predictions": predictions.digest}
    inputs = {"dataset": dataset, "predictions": predictions}
    if previous is not None:
        inputs["previous_selection"] = previous
        depends["previous_selection"] = previous.digest
    if settings.overrides is not None:
        overrides = existing_file(settings.overrides, "select.overrides", "a CSV or Parquet file")
        depends["overrides"] = digest_file(overrides)
    if corrections is not None:
        # A single file of corrections gives the same key, whether it is the recipe's or the workspace's.
        depends["corrections" if "overrides" in depends else "overrides"] = digest_file(corrections)
        settings = CorrectedSettings(**dict(settings), corrections=corrections)
    return _request(name, "select", settings, inputs, depends)


def evaluate_request(
    name: str, settings: EvaluateSettings, dataset: Artifact, model: Artifact, features: Artifact | None = None
) -> Request:
    """Returns the request for a model's evaluation on validation and test; stored features replace the network."""
    depends = {**{role: dataset.parts[role] for role in ("validation", "test")}, "model": model.digest}
    inputs = {"dataset": dataset, "model": model}
    if (
        features is not None and features.manifest["settings"]["views"] == 1
    ):  # only if the network would give the same result
        inputs["features"] = features
    return _request(name, "evaluate", settings, inputs, depends)


def gate_request(
    name: str, settings: GateSettings, dataset: Artifact, teacher: Artifact, student: Artifact, selection: Artifact
) -> Request:
    """Returns the request for the gate, which decides whether another round follows."""
    inputs = {"dataset": dataset, "teacher": teacher, "student": student, "selection": selection}
    depends = {role: artifact.digest for role, artifact in inputs.items() if role != "dataset"}
    return _request(name, "gate", settings, inputs, {**depends, "labeled": dataset.parts["labeled"]})


class GivenSettings(Section):
    """The settings of a given model: its folder."""

    path: RecipePath = Field(json_schema_extra={"key": False})


def take_given(context: StageContext) -> StageResult:
    """Runs the body of `given`: copies a trained model into the store."""
    settings = context.section
    assert isinstance(settings, GivenSettings)
    return copy_trained(settings.path, context.output)


def _request(
    name: str,
    stage: str,
    section: Section,
    inputs: dict[str, Artifact],
    depends: dict[str, str],
    seed: int = 0,
    changes: int = 0,
) -> Request:
    return Request(name, stage, VERSIONS[stage] + changes, BODIES[stage], section, inputs, depends, seed)
