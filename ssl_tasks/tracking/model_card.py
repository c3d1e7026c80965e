"""Writes the model card in Markdown, and the text of a registered model's page in MLflow.

Both describe the model, its data and its teacher, its accuracy, and how to load it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from selftrain.models.settings import ModelSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking.entities import input_datasets
from selftrain.ssl_tasks.tracking.lineage import SHOWN_DIGEST, Graph, Node, as_mermaid, as_tree
from selftrain.ssl_tasks.tracking.trace import mlflow_lineage
from selftrain.ssl_tasks.trained.files import CARD
from selftrain.ssl_tasks.trained.model import Card

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, LoggedModel
    from mlflow.entities.model_registry import ModelVersion


def model_card(
    name: str, card: Card, facts: Mapping[str, str], evaluations: Sequence[Artifact], lineage: Graph | None
) -> str:
    """Returns the model card. `facts` are further rows of its first table: file, format, digest."""
    size = f"{card.image_size}×{card.image_size}, {card.in_channels} channel(s), uint8 [n, height, width, channels]"
    rows = {
        **facts,
        "network": card.model.label + (f" ({card.members} averaged)" if card.members > 1 else ""),
        "input": size + "; (x / 255 - mean) / std is inside",
        "mean, std": f"{_numbers(card.mean)}; {_numbers(card.std)}",
        "output": f"logits float32 [n, {len(card.classes)}]; apply softmax to get probabilities",
    }
    parts = [
        f"# {_text(name)}",
        "An image classifier trained by selftrain on a few labelled images, and on unlabelled images with "
        "the pseudo-labels "
        "of its teachers.",
        _table(("", ""), rows.items()),
        f"## Classes ({len(card.classes)})",
        "\n".join(f"{number}. {_text(one)}" for number, one in enumerate(card.classes)),
        "## Accuracy",
        _accuracy(evaluations),
    ]
    if lineage is not None:
        parts += ["## Made from", _data(lineage), f"```mermaid\n{as_mermaid(lineage)}```"]
    return "\n\n".join(parts) + "\n"


def _accuracy(evaluations: Sequence[Artifact]) -> str:
    rows = []
    for one in evaluations:
        for split in ("validation", "test"):
            if one.summary.get(f"{split}_count"):
                low, high = one.summary[f"{split}_interval"]
                accuracy = f"{100 * one.summary[f'{split}_accuracy']:.1f} % ({100 * low:.1f} … {100 * high:.1f})"
                ece = f"{one.summary[f'{split}_ece']:.4f}"
                images = str(one.summary[f"{split}_count"])
                data = one.manifest["inputs"]["dataset"]["digest"][:12]
                rows.append((split, images, accuracy, ece, data))
    rows = list(dict.fromkeys(rows))  # a second evaluation on the same images, with attacks, has the same accuracy
    if not rows:
        return "Not evaluated in this workspace. To evaluate it: `selftrain evaluate MODEL CONFIG`."
    return _table(("split", "images", "accuracy (95 % interval)", "ECE", "data set"), rows)


def _data(lineage: Graph) -> str:
    """Yields the data sets and their parts, with their digests."""
    nodes = sorted(lineage.nodes.values(), key=lambda node: node.id)
    rows = [(node.label, f"`{node.digest}`") for node in nodes if node.kind in ("dataset", "labels")]
    return _table(("data", "digest"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *[[_text(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    """Returns text from data on one line, escaped for Markdown and HTML."""
    visible = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(value))
    escaped = visible.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{one}" if one in "|[]*\\#!" else one for one in escaped)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


LONGEST = 5000  # characters of a description that MLflow's database stores
SPLITS = ("validation", "test")
LOADING = """\
**Load it** where the workspace is, or anywhere with selftrain installed:

    selftrain predict {digest} IMAGES

    folder = mlflow.artifacts.download_artifacts("models:/{name}/{version}")
    model = selftrain.ssl_tasks.trained.model.load_trained(pathlib.Path(folder))
"""


def describe(client: "MlflowClient", version: "ModelVersion", model_id: str, artifact: Artifact, run: str) -> None:
    """Sets the description and the tags of a version; safe to repeat."""
    model = client.get_logged_model(model_id)  # a search does not return metrics
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
    client.update_model_version(
        version.name, version.version, text
    )  # last, so that a version with a description is complete


def teachers(graph: Graph, node_id: str) -> Iterator[Node]:
    """Returns the teachers of a model: the models whose predictions it was trained on."""
    for edge in graph.inputs(node_id):
        source = graph.nodes[edge.source]
        if source.kind != "model":
            yield from teachers(graph, source.id)
        elif graph.nodes[node_id].kind == "predictions":
            yield source


def accuracies(model: "LoggedModel") -> dict[str, float]:
    """Returns the accuracies by split; of several evaluations, the newest."""
    ordered = sorted(model.metrics or [], key=lambda metric: metric.timestamp)
    newest = {metric.key: metric.value for metric in ordered}
    return {split: newest[f"{split}_accuracy"] for split in SPLITS if f"{split}_accuracy" in newest}


def network(artifact: Artifact) -> str:
    """Returns the network's name in tables; empty for a given model."""
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
