"""What a model rests on, read from the store's manifests alone: selection, predictions, teacher, … to the labels."""

from collections.abc import Iterable

from selftrain.ssl_tasks.errors import NotFound, nearest
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.tracking.lineage.graph import Graph, Kind, Node

KINDS: dict[str, Kind] = {
    "dataset": "dataset",
    "train": "model",
    "given": "model",
    "predict": "predictions",
    "select": "selection",
    "evaluate": "evaluation",
    "gate": "gate",
}
PARTS = ("labeled", "unlabeled", "validation", "test")
CORRECTIONS = "overrides.parquet"  # of a selection


def store_lineage(store: Store, artifact: Artifact, names: dict[str, str] | None = None) -> Graph:
    """The graph above an artifact. `names` are labels by key: what a run calls its stages."""
    graph = Graph(artifact.key)
    waiting = [artifact]
    while waiting:
        one = waiting.pop()
        if not graph.add(artifact_node(one, (names or {}).get(one.key))):
            continue
        for role, source in one.manifest["inputs"].items():
            found = store.unchecked(source["stage"], source["key"])  # what is damaged has a lineage too
            if found is None:
                graph.add(
                    Node(source["key"], kind_of(source["stage"]), f"{source['stage']} (missing)", source["digest"])
                )
            else:
                waiting.append(found)
            graph.connect(source["key"], one.key, role)
        if one.stage == "dataset":
            _add_parts(graph, one)
        if CORRECTIONS in one.manifest["files"]:
            _add_corrections(graph, one)
    return graph


def kind_of(stage: str) -> Kind:
    """What a stage makes."""
    return KINDS.get(stage, "other")


def artifact_node(artifact: Artifact, name: str | None = None) -> Node:
    """An artifact as a node: by its key, since two questions may have the same answer."""
    details = {
        "stage": artifact.stage,
        "key": artifact.key,
        "path": str(artifact.path),
        "settings": artifact.manifest.get("settings", {}),
        "summary": artifact.summary,
    }
    return Node(artifact.key, kind_of(artifact.stage), name or artifact.stage, artifact.digest, details)


def _add_parts(graph: Graph, dataset: Artifact) -> None:
    """The labelled, unlabelled, validation and test images, each with the digest of its ids, labels and contents."""
    for part in PARTS:
        if part in dataset.parts:
            node_id = f"{dataset.key}.{part}"
            count = dataset.summary.get(part)
            images = f" · {count} images" if isinstance(count, int) else ""
            graph.add(Node(node_id, "labels", f"{part}{images}", dataset.parts[part]))
            graph.connect(node_id, dataset.key, part)


def _add_corrections(graph: Graph, selection: Artifact) -> None:
    """What people said of labels: it wins over the models."""
    node_id = f"{selection.key}.corrections"
    count = selection.summary.get("overrides", 0) + selection.summary.get("rejected", 0)
    digest = selection.manifest["files"][CORRECTIONS]["sha256"]
    graph.add(Node(node_id, "labels", f"corrections by people · {count} images", digest))
    graph.connect(node_id, selection.key, "corrections")


def find_artifact(store: Store, name: str) -> Artifact:
    """An artifact by its folder, or by the beginning of its digest or key."""
    known = list(store.artifacts())
    fitting = {
        one.key: one
        for one in known
        if name and (one.digest.startswith(name) or one.key.startswith(name) or str(one.path) == name.rstrip("/"))
    }
    digests = {one.digest for one in fitting.values()}
    if not fitting:
        raise NotFound(f"no artifact '{name}' in {store.root}." + nearest(name, {one.digest for one in known}))
    if len(digests) > 1:
        shown = ", ".join(sorted(f"{one.stage} {one.digest[:12]}" for one in fitting.values())[:10])
        raise NotFound(f"'{name}' fits {len(digests)} artifacts: {shown}. Give more of the digest.")
    return min(fitting.values(), key=lambda one: one.key)


def resting_on(store: Store, keys: Iterable[str]) -> list[Artifact]:
    """Every artifact that was made from one of these keys, directly or not, and these themselves."""
    known = {one.key: one for one in store.artifacts()}
    tainted = set(keys)
    grown = True
    while grown:
        fresh = {
            key
            for key, one in known.items()
            if key not in tainted and any(source["key"] in tainted for source in one.manifest["inputs"].values())
        }
        tainted |= fresh
        grown = bool(fresh)
    return sorted((known[key] for key in tainted if key in known), key=lambda one: (one.stage, one.key))
