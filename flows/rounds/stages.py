"""The stages: for each, its version, its body, and the digests that its key depends on.

Raise a stage's version, or a method's count of changes, when it would answer the same question otherwise; a test
reminds you.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from selftrain.ssl_tasks.execution.stage import Request, StageContext, StageResult
from selftrain.ssl_tasks.methods import LABELS_ONLY
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.settings.pseudo_labels import CorrectedSettings, PredictSettings, SelectSettings
from selftrain.ssl_tasks.settings.run_config import EvaluateSettings, GateSettings, LearnerSettings
from selftrain.ssl_tasks.settings.section import RecipePath, Section, existing_file
from selftrain.ssl_tasks.store.artifacts import Artifact, digest_file
from selftrain.ssl_tasks.store.stage_names import FIRST
from selftrain.ssl_tasks.trained import copy_trained, trained_digest

VERSIONS = {"dataset": 2, "train": 1, "given": 1, "predict": 1, "select": 1, "evaluate": 1, "gate": 1}
# Version of each method; raise it when the method's results change. Models of other methods stay valid.
METHOD_CHANGES = {
    **{"dividemix": 1, "label_propagation": 1, "meta_pseudo_labels": 2},
    **{"freematch": 1, "uda": 1, "vat": 2},  # where their weight was 0
}
BODIES = {
    "dataset": "selftrain.ssl_tasks.data.dataset:build_dataset",
    "train": "selftrain.ssl_tasks.training.stage:train_model",
    "given": "selftrain.flows.rounds.stages:take_given",
    "predict": "selftrain.ssl_tasks.pseudo_labels.predict:predict",
    "select": "selftrain.ssl_tasks.pseudo_labels.select:select",
    "evaluate": "selftrain.ssl_tasks.evaluation.stage:evaluate",
    "gate": "selftrain.ssl_tasks.evaluation.gate:gate",
}


def dataset_request(data: DataSettings, fingerprint: str, name: str = FIRST.dataset) -> Request:
    """The source's contents, as `fingerprint` names them, become a manifest."""
    return _request(name, "dataset", data, {}, {"source": fingerprint})


def train_request(
    name: str,
    learner: LearnerSettings,
    dataset: Artifact,
    seed: int,
    selection: Artifact | None = None,
    init: Artifact | None = None,
) -> Request:
    """A network is trained. It depends on the unlabelled images only where its method looks at them."""
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
    if (weights := learner.model.pretrained) is not None:
        depends["pretrained"] = digest_file(existing_file(weights, "model.pretrained", "a .safetensors file"))
    return _request(name, "train", learner, inputs, depends, seed, METHOD_CHANGES.get(learner.method.name, 0))


def given_request(name: str, folder: Path) -> Request:
    """A trained model from outside takes the teacher's place."""
    return _request(name, "given", GivenSettings(path=folder), {}, {"model": trained_digest(folder)})


def predict_request(name: str, settings: PredictSettings, dataset: Artifact, models: Sequence[Artifact]) -> Request:
    """One teacher, or the members of an ensemble, label the unlabelled images."""
    roles = {f"model_{number}" if number > 1 else "model": model for number, model in enumerate(models, 1)}
    depends = {role: dataset.parts[role] for role in ("unlabeled", "validation")}
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
    """Some of the pseudo-labels are accepted. Corrections of the round before are carried on."""
    depends = {**dataset.parts, "predictions": predictions.digest}
    inputs = {"dataset": dataset, "predictions": predictions}
    if previous is not None:
        inputs["previous_selection"] = previous
        depends["previous_selection"] = previous.digest
    if settings.overrides is not None:
        overrides = existing_file(settings.overrides, "select.overrides", "a CSV or Parquet file")
        depends["overrides"] = digest_file(overrides)
    if corrections is not None:
        # One file alone is the same question whosever it is.
        depends["corrections" if "overrides" in depends else "overrides"] = digest_file(corrections)
        settings = CorrectedSettings(**dict(settings), corrections=corrections)
    return _request(name, "select", settings, inputs, depends)


def evaluate_request(name: str, settings: EvaluateSettings, dataset: Artifact, model: Artifact) -> Request:
    """A model is measured on validation and test."""
    depends = {**{role: dataset.parts[role] for role in ("validation", "test")}, "model": model.digest}
    return _request(name, "evaluate", settings, {"dataset": dataset, "model": model}, depends)


def gate_request(
    name: str, settings: GateSettings, dataset: Artifact, teacher: Artifact, student: Artifact, selection: Artifact
) -> Request:
    """Whether another round is worth it."""
    inputs = {"dataset": dataset, "teacher": teacher, "student": student, "selection": selection}
    depends = {role: artifact.digest for role, artifact in inputs.items() if role != "dataset"}
    return _request(name, "gate", settings, inputs, {**depends, "labeled": dataset.parts["labeled"]})


class GivenSettings(Section):
    """The folder of a trained model."""

    path: RecipePath = Field(json_schema_extra={"key": False})


def take_given(context: StageContext) -> StageResult:
    """Body of `given`: copies a trained model into the store."""
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
