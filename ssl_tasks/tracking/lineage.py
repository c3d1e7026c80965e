"""Represents a lineage as a graph, draws it in three ways, and links to MLflow's pages of a run and its stages."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selftrain.ssl_tasks.reading import Malformed, Shape, read_json
from selftrain.ssl_tasks.store.artifacts import (
    write_atomically,
)
from selftrain.ssl_tasks.store.runs import Run, alive, owner
from selftrain.ssl_tasks.tracking.client import connect, default_uri
from selftrain.ssl_tasks.tracking.spool import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient


Kind = Literal[
    "labels",
    "dataset",
    "weights",
    "features",
    "model",
    "predictions",
    "selection",
    "evaluation",
    "gate",
    "run",
    "other",
]
SHOWN_DIGEST = 12
SHAPES: Mapping[Kind, tuple[str, str]] = {  # Mermaid's brackets: tables are cylinders, models are hexagons
    "labels": ("[(", ")]"),
    "dataset": ("[(", ")]"),
    "features": ("[(", ")]"),
    "weights": ("{{", "}}"),
    "predictions": ("[(", ")]"),
    "selection": ("[(", ")]"),
    "model": ("{{", "}}"),
    "gate": ("{", "}"),
}


@dataclass(frozen=True)
class Node:
    """One artifact of a lineage, by its digest."""

    id: str
    kind: Kind
    label: str
    digest: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """`target` was made from `source`, which had this role."""

    source: str
    target: str
    role: str


@dataclass
class Graph:
    """The graph of everything that the node `root` was made from."""

    root: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def inputs(self, target: str) -> list[Edge]:
        """Returns the edges into a node, in the order of their roles."""
        return sorted((edge for edge in self.edges if edge.target == target), key=lambda edge: (edge.role, edge.source))

    def add(self, node: Node) -> bool:
        """Adds a node; returns False if it exists already."""
        if node.id in self.nodes:
            return False
        self.nodes[node.id] = node
        return True

    def connect(self, source: str, target: str, role: str) -> None:
        """Adds an edge, once."""
        if (edge := Edge(source, target, role)) not in self.edges:
            self.edges.append(edge)


def visible(text: str) -> str:
    """Returns text from data with control characters replaced by their names, for a terminal."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def as_tree(graph: Graph, marks: Mapping[str, str] | None = None) -> str:
    """Draws the graph as a tree, the root first. A node shown before is only named. `marks` are appended to nodes."""
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
    """Draws the graph as a Mermaid flow chart, from the labels on the left to the root on the right."""
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
    """Encodes everything but plain words as Mermaid's entities, so that no text can end a label or begin markup."""
    return "".join(one if one.isalnum() or one in " ._-·:" else f"#{ord(one)};" for one in visible(text))


def as_json(graph: Graph) -> str:
    """Returns the graph as JSON, {"root", "nodes": […], "edges": […]}, in a stable order."""
    nodes = [asdict(graph.nodes[node_id]) for node_id in sorted(graph.nodes)]
    edges = [asdict(edge) for edge in sorted(graph.edges, key=lambda edge: (edge.target, edge.role, edge.source))]
    return json.dumps({"root": graph.root, "nodes": nodes, "edges": edges}, indent=1, default=str)


log = logging.getLogger("selftrain.tracking")
UP, PAUSE, MOST_RUNS = "up.json", 0.25, 10_000
REUSED = "selftrain.reused."  # + a stage's name: a pipeline run's tag that names the run which computed the stage


@contextlib.contextmanager
def announced(workspace: Path, address: str) -> Iterator[None]:
    """Announces the address of the workspace's MLflow to other processes during the block."""
    path = workspace / UP
    write_atomically(path, json.dumps({"mlflow": without_password(address), **owner()}) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


class Announcement(Shape):
    """The address of a workspace's MLflow, and the process that serves it."""

    mlflow: str
    host: str
    pid: int
    pid_started: float


def served_at(workspace: Path) -> str:
    """Returns the address of the user's server, or of a running `selftrain up`; empty if there is neither."""
    uri = default_uri(workspace)
    if uri.startswith(("http://", "https://")):
        return uri
    try:
        told = read_json(workspace / UP, Announcement)
    except (FileNotFoundError, Malformed):
        return ""
    return str(told["mlflow"]) if alive(told) else ""


def run_links(run: Run, patience: float = 0.0) -> dict[str, str]:
    """Returns MLflow's pages by the run's id and the digests of its stages; empty if no server is known.

    Stages appear in MLflow shortly after they end; `patience` is the time to wait for them, in seconds.
    """
    address = served_at(run.workspace)
    if not address:
        return {}
    deadline = time.monotonic() + patience
    wanted = {stage.digest for stage in run.stages() if stage.digest}
    try:
        client = connect(default_uri(run.workspace), run.workspace)  # the server of `selftrain up` uses this database
        while not wanted <= set(found := find_pages(client, address, run)) and time.monotonic() < deadline:
            time.sleep(PAUSE)
    except Exception as error:  # noqa: BLE001 - whatever MLflow or a socket raises: a page without links is a page too
        log.warning(
            "the links to MLflow at %s are missing: %s", without_password(address), without_password(str(error))
        )
        return {}
    return found


def find_pages(client: "MlflowClient", address: str, run: Run) -> dict[str, str]:
    """Returns the pages that the server has so far."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`selftrain.run` = '{run.id}'", max_results=1)
    if not found:
        return {}
    pipeline = found[0].info
    children = client.search_runs(
        [pipeline.experiment_id], f"tags.`mlflow.parentRunId` = '{pipeline.run_id}'", max_results=MOST_RUNS
    )
    by_digest = {child.data.tags.get("selftrain.digest", ""): child.info.run_id for child in children}
    tags = found[0].data.tags
    by_digest |= {stage.digest: tags[REUSED + stage.name] for stage in run.stages() if REUSED + stage.name in tags}
    pages = f"{without_password(address).rstrip('/')}/#/experiments/{pipeline.experiment_id}/runs/"
    return {about: pages + run_id for about, run_id in {**by_digest, run.id: pipeline.run_id}.items() if about}
