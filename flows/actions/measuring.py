"""Evaluates a trained model on a recipe's validation and test images, as runs do; results are stored and reused."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selftrain.flows.actions.models import Model, find_model, own_teacher
from selftrain.flows.environment import Workspace, set_environment, workspace_folder
from selftrain.flows.rounds.conductor import Conductor
from selftrain.flows.rounds.stages import (
    dataset_request,
    evaluate_request,
    features_request,
    given_request,
    weights_request,
)
from selftrain.ssl_tasks.errors import ConfigError, DataError, NotFound
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.locks import at_work

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("selftrain")


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, and of the comparison with a second model if there is one."""

    model: str
    artifact: Artifact
    against: str = ""
    compared: dict[str, Any] | None = None
    note: str = ""  # the reason for this comparison, or for none

    @property
    def metrics(self) -> dict[str, Any]:
        """Returns the metrics, as {"validation": …, "test": …, "temperature": …}."""
        return json.loads(self.artifact.file("metrics.json").read_text())

    @property
    def robustness(self) -> dict[str, Any]:
        """Returns the robustness, as {"attacks": […], "corruptions": {…}}; empty if it was not measured."""
        path = self.artifact.file("robustness.json")
        return json.loads(path.read_text()) if path.exists() else {}


def evaluate(
    model: str,
    data: str | Path,
    overrides: Iterable[str] = (),
    workspace: Workspace = None,
    attacks: tuple[float, ...] = (),
    corruptions: bool = False,
    against: str | None = "",
) -> Evaluation:
    """Evaluate a model on a recipe's validation and test images. Results are stored and reused.

    `attacks` are sizes of FGSM attacks as shares of the pixel range. `against` is a second model to evaluate and
    compare with: by default the student's teacher; None evaluates without a comparison.
    """
    if wrong := [step for step in attacks if not 0 < step <= 1]:
        raise ConfigError(f"--attacks has {wrong[0]:g}; expected shares of the pixel range, above 0 and at most 1")
    folder, config = workspace_folder(workspace), load_recipe(data, overrides).config
    asked = {"attacks": attacks or config.evaluate.attacks, "corruptions": corruptions or config.evaluate.corruptions}
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=asked)})
    set_environment(folder)
    with at_work(folder):
        found = find_model(folder, model)
        measured = _measured(found, config, folder)
        reference, note = _reference(folder, found, against)
        if reference is None:
            return Evaluation(found.name, measured, note=note)
        from selftrain.ssl_tasks.evaluation.metrics import compare_evaluations

        split: Literal["test", "validation"] = "test" if measured.summary["test_count"] else "validation"
        compared = compare_evaluations(_measured(reference, config, folder), measured, split)
        return Evaluation(found.name, measured, reference.name, {"split": split, **compared}, note)


def check_labels(recipe: str | Path, overrides: Iterable[str] = (), workspace: Workspace = None) -> "pd.DataFrame":
    """Return the given labels of a recipe that features of the teacher's network contradict, the most suspect first.

    Columns: sample_id, label, suggested, probability (of the label), suggested_probability, uri.
    """
    folder, config = workspace_folder(workspace), load_recipe(recipe, overrides).config
    if config.given_teacher is None and config.teacher.model.pretrained is None:
        log.warning("teacher.model has no pretrained weights: features of a random network say little about labels")
    set_environment(folder)
    with at_work(folder):
        dataset, conductor = _dataset(config, folder), Conductor(config, folder)
        network, weights, given = config.teacher.model, None, None
        if config.given_teacher is not None:
            given = conductor.run_stage(given_request("model", config.given_teacher)).artifact
        elif network.pretrained is not None:
            weights = conductor.run_stage(weights_request("weights-teacher", network)).artifact
        request = features_request("features", config.features, network, dataset, weights=weights, init=given)
        features = conductor.run_stage(request).artifact
        from selftrain.ssl_tasks.data.dataset import Dataset
        from selftrain.ssl_tasks.data.stored_features import StoredFeatures
        from selftrain.ssl_tasks.features.label_check import suspect_labels

        cache = folder / "cache"
        return suspect_labels(Dataset.open(dataset, cache, config.runtime), StoredFeatures.open(features, cache))


def _reference(workspace: Path, model: Model, against: str | None) -> tuple[Model | None, str]:
    """Returns the model to compare with, or None, and the reason."""
    if against is None:
        return None, "no comparison (--against none)"
    if against:
        return find_model(workspace, against), ""
    try:
        teacher = own_teacher(workspace, model)
    except NotFound as error:
        return None, f"no comparison: {error}"
    return teacher, "compared with its own teacher"


def _measured(model: Model, config: RunConfig, workspace: Path) -> Artifact:
    """Returns the model's evaluation, reused from the store or computed."""
    dataset = _images_for(model, config, workspace)
    conductor = Conductor(config, workspace)
    artifact = model.artifact or conductor.run_stage(given_request("model", model.folder)).artifact
    outcome = conductor.run_stage(evaluate_request("evaluate", config.evaluate, dataset, artifact))
    log.info("evaluation of %s %s", model.name, "reused" if outcome.reused else f"computed in {outcome.seconds:.1f} s")
    if not outcome.artifact.summary["validation_count"] + outcome.artifact.summary["test_count"]:
        raise DataError(
            "this recipe's data has no labelled validation or test images; expected some. Set data.split.test"
        )
    return outcome.artifact


def _images_for(model: Model, config: RunConfig, workspace: Path) -> Artifact:
    """Returns the recipe's data set. Size, channels and classes that the recipe does not set are the model's."""
    from selftrain.ssl_tasks.trained.model import load_card

    card = load_card(model.folder)
    dataset = _dataset(config, workspace)
    known = {"image_size": card.image_size, "channels": card.in_channels, "classes": list(card.classes)}
    info = _info(dataset)
    if any(info[name] != value for name, value in known.items()):
        open_ = {name: value for name, value in known.items() if getattr(config.data, name) is None}
        if card.built_for is not None:  # fine-tuned for larger images than its recipe trains on
            open_["image_size"] = card.image_size
        if not set(info["classes"]) <= set(card.classes):  # classes that the model does not know
            open_.pop("classes", None)
        data = DataSettings.model_validate({**config.data.model_dump(), **open_})
        dataset = _dataset(config.model_copy(update={"data": data}), workspace)
        info = _info(dataset)
    for name in ("classes", "channels"):
        if info[name] != known[name]:
            raise ConfigError(
                f"{model.name} was trained with {name} {_short(known[name])}, and the data has {_short(info[name])}; "
                f"expected the same, in the same order. Set data.{name}, or choose another recipe"
            )
    return dataset


def _dataset(config: RunConfig, workspace: Path) -> Artifact:
    from selftrain.ssl_tasks.data.sources import fingerprint

    request = dataset_request(config.data, fingerprint(config.data, workspace / "cache"))
    return Conductor(config, workspace).run_stage(request).artifact


def _info(dataset: Artifact) -> dict[str, Any]:
    return json.loads(dataset.file("info.json").read_text())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
