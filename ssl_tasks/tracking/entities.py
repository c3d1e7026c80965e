"""Describes artifacts for MLflow: inputs (data sets and models), models, numbers and small files; and the champion.

The champion of a name is the registered model with the best validation accuracy so far. Tables have a preview as CSV,
because MLflow does not show Parquet.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.csv_text import frame_text
from selftrain.ssl_tasks.tracking.spool import Operation
from selftrain.ssl_tasks.tracking.tracker import metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion


ALIAS = "champion"
SCORE, DIGEST, VALIDATION = "selftrain.validation_accuracy", "selftrain.digest", "selftrain.validation"
ABOUT = """\
Image classifiers trained by selftrain with the recipe `{name}`. The version with the alias `champion` is the best so
far, by its accuracy on validation images:

    selftrain predict champion:{name} IMAGES
"""


def promote(client: "MlflowClient", model: "LoggedModel", run_id: str, operation: Operation) -> tuple[bool, str]:
    """Registers a model and makes it champion if it beats the current one; returns whether it did, and a sentence."""
    name, score = operation["name"], float(operation["score"])
    holder = champion(client, name)
    if holder is not None and holder.tags.get(DIGEST) == operation["manifest"]["digest"]:
        return False, f"version {holder.version} remains champion: it is the same model"
    same = holder is None or holder.tags.get(VALIDATION, "") == operation["validation"]
    other = "" if same else " (on different validation images)"
    if holder is not None and float(holder.tags.get(SCORE, "-inf")) >= score:
        held = f"{float(holder.tags[SCORE]):.4f} on validation{other}"
        return False, f"version {holder.version} remains champion: {held} against {score:.4f}"
    version = _version(client, name, model, run_id, operation)
    client.set_registered_model_alias(name, ALIAS, version.version)
    if holder is None:
        return True, f"version {version.version} is the first champion, with {score:.4f} on validation"
    return (
        True,
        f"version {version.version} is champion: {score:.4f} beat version {holder.version}'s "
        f"{holder.tags[SCORE]}{other}",
    )


def champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """Returns the version with the alias `champion`, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def version_of(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    """Returns the registered version of a model, or None."""
    found = (one for one in client.search_model_versions(f"name = '{name}'") if one.tags.get(DIGEST) == digest)
    return next(found, None)


def _version(
    client: "MlflowClient", name: str, model: "LoggedModel", run_id: str, operation: Operation
) -> "ModelVersion":
    """Returns the version of a model; it is created only if missing, so that replaying creates no second one."""
    from mlflow.exceptions import MlflowException

    digest = operation["manifest"]["digest"]
    try:
        client.create_registered_model(name, description=ABOUT.format(name=name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if (there := version_of(client, name, digest)) is not None:
        return there
    tags = {SCORE: repr(float(operation["score"])), DIGEST: digest, VALIDATION: operation["validation"]}
    # A server refuses the source unless the model is named too.
    source, model_id = f"models:/{model.model_id}", model.model_id
    return client.create_model_version(name, source=source, run_id=run_id, tags=tags, model_id=model_id)


ROWS = 1_000
TABLES = {  # the table of a stage (its first shard), and the columns of the preview
    "predict": ("shards/part-00000.parquet", ["sample_id", "label", "confidence", "margin", "entropy", "error"]),
    "select": ("selection.parquet", ["sample_id", "label", "confidence", "copies", "source"]),
}


def preview_csv(artifact: Artifact, rows: int = ROWS) -> str | None:
    """Returns a preview of at most `rows` rows, equally many per class, the most confident first; None without a
    table."""
    name, columns = TABLES.get(artifact.stage, ("", []))
    if not name or not artifact.file(name).is_file():
        return None
    import pandas as pd  # MLflow imports it anyway, with garbage collection off

    table = pd.read_parquet(artifact.file(name), columns=columns)
    if len(table) > rows:
        quota = max(1, rows // max(1, table["label"].nunique(dropna=False)))
        table = table.sort_values(["confidence", "sample_id"], ascending=[False, True], kind="stable")
        table = table.groupby("label", dropna=False, sort=False).head(quota).head(rows)
    return frame_text(table.sort_values(["label", "confidence"], ascending=[True, False], kind="stable"))


MODEL_STAGES = ("train", "given")
DIGEST_CHARACTERS = 32  # MLflow allows at most 36; the whole digest is in the tag selftrain.sha256
LARGEST_FILE = 1 << 20
MODEL = ("model.safetensors", "model.json")


@dataclass(frozen=True)
class Consumed:
    """A data set that a stage has read: a table in the store, or one part of the data set's manifest."""

    name: str
    digest: str
    context: str
    source: Mapping[str, Any]


def consumed_data(artifact: Artifact) -> Iterator[Consumed]:
    """Returns the data sets among a stage's inputs; of the manifest, only the parts that the stage depends on."""
    depends: Mapping[str, str] = artifact.manifest.get("key_parts", {}).get("inputs", {})
    store = artifact.path.parent.parent
    for role, one in artifact.manifest["inputs"].items():
        if one["stage"] in MODEL_STAGES:
            continue
        source = {"uri": (store / one["stage"] / one["key"]).as_uri(), "stage": one["stage"], "key": one["key"]}
        parts = {name: depends[name] for name in ("labeled", "unlabeled", "validation", "test") if name in depends}
        if one["stage"] == "dataset" and parts:
            for part, digest in parts.items():
                yield Consumed(f"dataset.{part}", digest, part, {**source, "part": part, "dataset": one["digest"]})
        else:
            yield Consumed(role, one["digest"], role, source)


def consumed_models(artifact: Artifact) -> dict[str, str]:
    """Returns the digests of the models among a stage's inputs, by role."""
    inputs = artifact.manifest["inputs"].items()
    return {role: one["digest"] for role, one in inputs if one["stage"] in MODEL_STAGES}


def dataset_input(consumed: Consumed) -> "DatasetInput":
    """Returns a data set as MLflow's entity."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        consumed.name, consumed.digest[:DIGEST_CHARACTERS], "local", json.dumps(consumed.source, sort_keys=True)
    )
    tags = [InputTag("mlflow.data.context", consumed.context), InputTag("selftrain.sha256", consumed.digest)]
    return DatasetInput(dataset, tags)


def measured_on(artifact: Artifact, metric: str) -> dict[str, str]:
    """Returns the images on which a metric was measured, so that a model's page shows them beside it."""
    part = f"dataset.{metric.partition('_')[0]}"
    found = [one for one in consumed_data(artifact) if one.name == part and artifact.stage == "evaluate"]
    return {"dataset_name": part, "dataset_digest": found[0].digest[:DIGEST_CHARACTERS]} if found else {}


def numbers(summary: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of a stage's summary as a flat table, with names that MLflow allows."""
    found: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and value is not None:
            found[metric_name(f"{prefix}{name}")] = float(value)
    return found


def small_files(artifact: Artifact) -> list[Path]:
    """Returns the JSON files to copy to MLflow; tables are referenced by URI and digest instead."""
    paths = (artifact.file(name) for name in sorted(artifact.manifest.get("files", {})) if name.endswith(".json"))
    return [path for path in paths if path.is_file() and path.stat().st_size <= LARGEST_FILE]


def model_files(artifact: Artifact) -> list[Path]:
    """Returns the files of a model: its own, and the weights that it differs from if it holds a difference."""
    files = [artifact.file(name) for name in MODEL]
    base = artifact.manifest["inputs"].get("weights")
    if base is not None and json.loads(files[1].read_text()).get("base") is not None:
        files.append(artifact.path.parent.parent / base["stage"] / base["key"] / "weights.safetensors")
    return files


def find_model(client: "MlflowClient", experiments: list[str], digest: str) -> "LoggedModel | None":
    """Returns the logged model of a digest, from the run that made it first."""
    found = client.search_logged_models(
        experiments,
        filter_string=f"tags.`selftrain.digest` = '{digest}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
    )
    ready = [model for model in found if model.status == "READY"]
    return ready[0] if ready else None


def input_models(run: "Run") -> list[str]:
    """Returns the ids of the models that a run has read."""
    return [one.model_id for one in run.inputs.model_inputs] if run.inputs else []


def output_models(run: "Run") -> list[str]:
    """Returns the ids of the models that a run has made."""
    return [one.model_id for one in run.outputs.model_outputs] if run.outputs else []


def input_datasets(run: "Run") -> list["Dataset"]:
    """Returns the data sets that a run has read."""
    return [one.dataset for one in run.inputs.dataset_inputs] if run.inputs else []
