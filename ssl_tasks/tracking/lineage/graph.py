"""A lineage as a graph: what rests on what; and three ways to write it down."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["labels", "dataset", "model", "predictions", "selection", "evaluation", "gate", "run", "other"]
SHOWN_DIGEST = 12
SHAPES: Mapping[Kind, tuple[str, str]] = {  # Mermaid's brackets: tables are cylinders, models are hexagons
    "labels": ("[(", ")]"),
    "dataset": ("[(", ")]"),
    "predictions": ("[(", ")]"),
    "selection": ("[(", ")]"),
    "model": ("{{", "}}"),
    "gate": ("{", "}"),
}


@dataclass(frozen=True)
class Node:
    """One thing, by its digest."""

    id: str
    kind: Kind
    label: str
    digest: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """`source` was read to make `target`, in this role."""

    source: str
    target: str
    role: str


@dataclass
class Graph:
    """What the node `root` rests on."""

    root: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def inputs(self, target: str) -> list[Edge]:
        """The edges into a node, in the order of their roles."""
        return sorted((edge for edge in self.edges if edge.target == target), key=lambda edge: (edge.role, edge.source))

    def add(self, node: Node) -> bool:
        """Adds a node; False where it is there already."""
        if node.id in self.nodes:
            return False
        self.nodes[node.id] = node
        return True

    def connect(self, source: str, target: str, role: str) -> None:
        """Adds an edge, once."""
        if (edge := Edge(source, target, role)) not in self.edges:
            self.edges.append(edge)


def visible(text: str) -> str:
    """Text from data, made harmless for a terminal: control characters become their names."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def as_tree(graph: Graph, marks: Mapping[str, str] | None = None) -> str:
    """Lines for a terminal, the root first; what was shown before is named, not repeated. `marks` follow a node."""
    return "\n".join(_tree_lines(graph, graph.root, "", "", set(), marks or {}))


def _tree_lines(
    graph: Graph, node_id: str, first: str, rest: str, seen: set[str], marks: Mapping[str, str]
) -> Iterator[str]:
    node = graph.nodes[node_id]
    again = node_id in seen and bool(graph.inputs(node_id))
    seen.add(node_id)
    mark = f"  {marks[node_id]}" if node_id in marks else ""
    yield f"{first}{visible(node.label)}  {node.digest[:SHOWN_DIGEST]}{mark}{'  (see above)' if again else ''}"
    edges = [] if again else graph.inputs(node_id)
    for number, edge in enumerate(edges, 1):
        last = number == len(edges)
        corner, bar = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _tree_lines(graph, edge.source, f"{rest}{corner}{visible(edge.role)}: ", rest + bar, seen, marks)


def as_mermaid(graph: Graph) -> str:
    """A flow chart, from the labels at the left to the root at the right."""
    names = {node_id: f"n{number}" for number, node_id in enumerate(sorted(graph.nodes))}
    lines = ["flowchart LR"]
    for node_id, name in names.items():
        node = graph.nodes[node_id]
        left, right = SHAPES.get(node.kind, ("[", "]"))
        lines.append(f'  {name}{left}"{_entities(node.label)}<br/>{_entities(node.digest[:SHOWN_DIGEST])}"{right}')
    ordered = sorted(graph.edges, key=lambda edge: (names[edge.target], edge.role, names[edge.source]))
    lines += [f'  {names[edge.source]} -->|"{_entities(edge.role)}"| {names[edge.target]}' for edge in ordered]
    return "\n".join(lines) + "\n"


def _entities(text: str) -> str:
    """Everything but plain words as Mermaid's entities: no text can end a label, or begin markup."""
    return "".join(one if one.isalnum() or one in " ._-·:" else f"#{ord(one)};" for one in visible(text))


def as_json(graph: Graph) -> str:
    """{"root", "nodes": […], "edges": […]}, in a stable order."""
    nodes = [asdict(graph.nodes[node_id]) for node_id in sorted(graph.nodes)]
    edges = [asdict(edge) for edge in sorted(graph.edges, key=lambda edge: (edge.target, edge.role, edge.source))]
    return json.dumps({"root": graph.root, "nodes": nodes, "edges": edges}, indent=1, default=str)
