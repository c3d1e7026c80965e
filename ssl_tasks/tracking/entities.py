"""What an artifact is to MLflow: its inputs as data sets and models, itself as a model, its numbers and small files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking.follower import metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, LoggedModel, Run

MODEL_STAGES = ("train", "given")
DIGEST_CHARACTERS = 32  # MLflow takes 36 at the most; the whole digest is in the tag selftrain.sha256
LARGEST_FILE = 1 << 20
WEIGHTS = ("model.safetensors", "model.json")


@dataclass(frozen=True)
class Consumed:
    """A data set that a stage has read: a table of the store, or one part of the data set's manifest."""

    name: str
    digest: str
    context: str
    source: Mapping[str, Any]


def consumed_data(artifact: Artifact) -> Iterator[Consumed]:
    """The inputs that are data: of the data set's manifest, only the parts that the stage depends on."""
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
    """The digests of the inputs that are models, by role."""
    inputs = artifact.manifest["inputs"].items()
    return {role: one["digest"] for role, one in inputs if one["stage"] in MODEL_STAGES}


def dataset_input(consumed: Consumed) -> "DatasetInput":
    """The same, as MLflow's entity."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        consumed.name, consumed.digest[:DIGEST_CHARACTERS], "local", json.dumps(consumed.source, sort_keys=True)
    )
    tags = [InputTag("mlflow.data.context", consumed.context), InputTag("selftrain.sha256", consumed.digest)]
    return DatasetInput(dataset, tags)


def measured_on(artifact: Artifact, metric: str) -> dict[str, str]:
    """The images that a number of an evaluation is about, so that a model's page shows them beside it."""
    part = f"dataset.{metric.partition('_')[0]}"
    found = [one for one in consumed_data(artifact) if one.name == part and artifact.stage == "evaluate"]
    return {"dataset_name": part, "dataset_digest": found[0].digest[:DIGEST_CHARACTERS]} if found else {}


def numbers(summary: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a stage's summary, flat, under names that MLflow takes."""
    found: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and value is not None:
            found[metric_name(f"{prefix}{name}")] = float(value)
    return found


def small_files(artifact: Artifact) -> list[Path]:
    """The JSON files that a person reads in MLflow; tables are referenced by URI and digest instead."""
    paths = (artifact.file(name) for name in sorted(artifact.manifest.get("files", {})) if name.endswith(".json"))
    return [path for path in paths if path.is_file() and path.stat().st_size <= LARGEST_FILE]


def find_model(client: "MlflowClient", experiments: list[str], digest: str) -> "LoggedModel | None":
    """The logged model of a digest, whichever run made it first."""
    found = client.search_logged_models(
        experiments,
        filter_string=f"tags.`selftrain.digest` = '{digest}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
    )
    ready = [model for model in found if model.status == "READY"]
    return ready[0] if ready else None


def input_models(run: "Run") -> list[str]:
    """The ids of the models that a run has read."""
    return [one.model_id for one in run.inputs.model_inputs] if run.inputs else []


def output_models(run: "Run") -> list[str]:
    """The ids of the models that a run has made."""
    return [one.model_id for one in run.outputs.model_outputs] if run.outputs else []


def input_datasets(run: "Run") -> list["Dataset"]:
    """The data sets that a run has read."""
    return [one.dataset for one in run.inputs.dataset_inputs] if run.inputs else []
