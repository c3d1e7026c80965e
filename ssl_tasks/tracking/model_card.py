"""A model card in Markdown: what a model is, what it was made from, and how good it was found to be."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking.lineage.graph import Graph, as_mermaid
from selftrain.ssl_tasks.trained.model import Card


def model_card(
    name: str, card: Card, facts: Mapping[str, str], evaluations: Sequence[Artifact], lineage: Graph | None
) -> str:
    """The whole card. `facts` are further rows of the first table: file, format, digest."""
    size = f"{card.image_size}×{card.image_size}, {card.in_channels} channel(s), uint8 [n, height, width, channels]"
    rows = {
        **facts,
        "network": card.model.label + (f" ({card.members} averaged)" if card.members > 1 else ""),
        "input": size + "; (x / 255 - mean) / std is inside",
        "mean, std": f"{_numbers(card.mean)}; {_numbers(card.std)}",
        "output": f"logits float32 [n, {len(card.classes)}]; softmax makes them probabilities",
    }
    parts = [
        f"# {_text(name)}",
        "An image classifier made by selftrain: a few labelled images, many unlabelled ones, and the labels that its "
        "teachers gave to these.",
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
    rows = list(dict.fromkeys(rows))  # the same images measured again, for their attacks, say nothing new
    if not rows:
        return "Not measured in this workspace; `selftrain evaluate` does."
    return _table(("split", "images", "accuracy (95 % interval)", "ECE", "data set"), rows)


def _data(lineage: Graph) -> str:
    """The data sets and their parts, by digest."""
    nodes = sorted(lineage.nodes.values(), key=lambda node: node.id)
    rows = [(node.label, f"`{node.digest}`") for node in nodes if node.kind in ("dataset", "labels")]
    return _table(("data", "digest"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *[[_text(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    """Text from data on one line, with nothing in it that Markdown or HTML would take for more than text."""
    visible = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(value))
    escaped = visible.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{one}" if one in "|[]*\\#!" else one for one in escaped)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
