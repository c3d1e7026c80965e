"""What MLflow's page of a registered model says: what a version is, who taught it, how good it is, how to load it."""

import json
from collections.abc import Iterator
from textwrap import indent
from typing import TYPE_CHECKING

from selftrain.models.settings import ModelSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking.entities import input_datasets
from selftrain.ssl_tasks.tracking.lineage.graph import SHOWN_DIGEST, Graph, Node, as_tree
from selftrain.ssl_tasks.tracking.lineage.mlflow_lineage import mlflow_lineage
from selftrain.ssl_tasks.trained.files import CARD

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, LoggedModel
    from mlflow.entities.model_registry import ModelVersion

LONGEST = 5000  # characters of a description that MLflow's database keeps
SPLITS = ("validation", "test")
LOADING = """\
**Load it** where the workspace is, or anywhere with selftrain installed:

    selftrain predict {digest} IMAGES

    folder = mlflow.artifacts.download_artifacts("models:/{name}/{version}")
    model = selftrain.ssl_tasks.trained.model.load_trained(pathlib.Path(folder))
"""


def describe(client: "MlflowClient", version: "ModelVersion", model_id: str, artifact: Artifact, run: str) -> None:
    """Gives a version its description and its tags. Twice is once."""
    model = client.get_logged_model(model_id)  # a search leaves metrics out
    graph = mlflow_lineage(client, model_id)
    taught_by = list(teachers(graph, graph.root))
    read = input_datasets(client.get_run(str(model.source_run_id)))
    tags = {
        "selftrain.run": run,
        "selftrain.stage": model.name,
        "selftrain.network": network(artifact),
        "selftrain.teacher": " ".join(node.digest for node in taught_by),
        "selftrain.test_accuracy": str(accuracies(model).get("test", "")),
        **{f"selftrain.input.{one.name}": one.digest for one in read},
    }
    for key, value in tags.items():
        if value:
            client.set_model_version_tag(version.name, version.version, key, value)
    text = _description(version, model, artifact, run, graph, taught_by, read)
    client.update_model_version(version.name, version.version, text)  # last: a version with a description has it all


def teachers(graph: Graph, node_id: str) -> Iterator[Node]:
    """The models whose predictions a model learned from."""
    for edge in graph.inputs(node_id):
        source = graph.nodes[edge.source]
        if source.kind != "model":
            yield from teachers(graph, source.id)
        elif graph.nodes[node_id].kind == "predictions":
            yield source


def accuracies(model: "LoggedModel") -> dict[str, float]:
    """By split; of several measurements the newest."""
    ordered = sorted(model.metrics or [], key=lambda metric: metric.timestamp)
    newest = {metric.key: metric.value for metric in ordered}
    return {split: newest[f"{split}_accuracy"] for split in SPLITS if f"{split}_accuracy" in newest}


def network(artifact: Artifact) -> str:
    """What a table calls the network; empty for a model that was given."""
    settings = artifact.manifest["settings"].get("model")
    return ModelSettings.model_validate(settings).label if isinstance(settings, dict) else ""


def _description(
    version: "ModelVersion",
    model: "LoggedModel",
    artifact: Artifact,
    run: str,
    graph: Graph,
    taught_by: list[Node],
    read: list["Dataset"],
) -> str:
    pages = f"#/experiments/{model.experiment_id}"
    rows = [("made by", f"[{model.name}]({pages}/runs/{model.source_run_id}) of run `{run}`")]
    rows += [("network", network(artifact))] if network(artifact) else []
    rows += [(f"accuracy on {split} images", f"{100 * value:.1f} %") for split, value in accuracies(model).items()]
    rows += [("taught by", f"[{node.label}]({pages}/models/{node.id}) {_short(node.digest)}") for node in taught_by]
    rows += [(f"data: {one.name.removeprefix('dataset.')}", _short(one.digest)) for one in read]
    about = f"An image classifier{_of_classes(artifact)}, made by selftrain, with safetensors weights."
    digest = artifact.digest[:SHOWN_DIGEST]
    loading = LOADING.format(name=version.name, version=version.version, digest=digest)
    table = "\n".join(f"| {' | '.join(row)} |" for row in [("", ""), ("---", "---"), *rows])
    tree = indent(as_tree(graph), "    ")
    text = f"{about}\n\n{table}\n\n{loading}\n**Made from**\n\n{tree}\n"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _of_classes(artifact: Artifact) -> str:
    card = artifact.file(CARD)
    classes = json.loads(card.read_text()).get("classes") if card.is_file() else None
    return f" of {len(classes)} classes" if classes else ""


def _short(digest: str) -> str:
    return f"`{digest[:SHOWN_DIGEST]}`"
