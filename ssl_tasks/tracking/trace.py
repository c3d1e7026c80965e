"""Reads the lineage of a model or an image, and verifies the files of all artifacts in it.

A model's lineage leads through its selection, predictions and teacher to the labels. It is read from the store's
manifests, or through MLflow's API. An image's history lists its pseudo-label in each round, the teacher that predicted
it, and the copies in the student's training. Verification checks each file's digest and names the models that depend on
a damaged file.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from selftrain.ssl_tasks.errors import DamagedArtifact, NotFound, nearest
from selftrain.ssl_tasks.store.artifacts import MANIFEST, Artifact, Store, digest_file, digest_json, read_manifest
from selftrain.ssl_tasks.store.runs import Run
from selftrain.ssl_tasks.tracking.entities import input_datasets, input_models
from selftrain.ssl_tasks.tracking.lineage import Graph, Kind, Node, visible

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset
    from mlflow.entities import Run as MlflowRun


KINDS: dict[str, Kind] = {
    "dataset": "dataset",
    "weights": "weights",
    "features": "features",
    "train": "model",
    "given": "model",
    "predict": "predictions",
    "select": "selection",
    "evaluate": "evaluation",
    "gate": "gate",
}
PARTS = ("labeled", "unlabeled", "validation", "test")
CORRECTIONS = "overrides.parquet"  # a file of a selection


def store_lineage(store: Store, artifact: Artifact, names: dict[str, str] | None = None) -> Graph:
    """Returns the graph of everything that an artifact was made from. `names` are a run's stage names by key."""
    graph = Graph(artifact.key)
    waiting = [artifact]
    while waiting:
        one = waiting.pop()
        if not graph.add(artifact_node(one, (names or {}).get(one.key))):
            continue
        for role, source in one.manifest["inputs"].items():
            found = store.unchecked(source["stage"], source["key"])  # a damaged artifact has a lineage too
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
    """Returns the kind of artifact that a stage makes."""
    return KINDS.get(stage, "other")


def artifact_node(artifact: Artifact, name: str | None = None) -> Node:
    """Returns an artifact as a node, identified by its key, because two stages may make the same contents."""
    details = {
        "stage": artifact.stage,
        "key": artifact.key,
        "path": str(artifact.path),
        "settings": artifact.manifest.get("settings", {}),
        "summary": artifact.summary,
    }
    label = name or artifact.stage
    if artifact.stage == "weights":
        told = (artifact.summary.get(name) for name in ("network", "source", "licence"))
        label = " · ".join([label, *(str(one) for one in told if one)])
    return Node(artifact.key, kind_of(artifact.stage), label, artifact.digest, details)


def _add_parts(graph: Graph, dataset: Artifact) -> None:
    """Adds the labelled, unlabelled, validation and test images, each with the digest of its ids, labels and
    contents."""
    for part in PARTS:
        if part in dataset.parts:
            node_id = f"{dataset.key}.{part}"
            count = dataset.summary.get(part)
            images = f" · {count} images" if isinstance(count, int) else ""
            graph.add(Node(node_id, "labels", f"{part}{images}", dataset.parts[part]))
            graph.connect(node_id, dataset.key, part)


def _add_corrections(graph: Graph, selection: Artifact) -> None:
    """Adds the corrections of a selection, which take precedence over the models."""
    node_id = f"{selection.key}.corrections"
    count = selection.summary.get("overrides", 0) + selection.summary.get("rejected", 0)
    digest = selection.manifest["files"][CORRECTIONS]["sha256"]
    graph.add(Node(node_id, "labels", f"corrections by people · {count} images", digest))
    graph.connect(node_id, selection.key, "corrections")


def find_artifact(store: Store, name: str) -> Artifact:
    """Finds an artifact by its folder, or by the beginning of its digest or key."""
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
        raise NotFound(f"'{name}' is the beginning of {len(digests)} digests: {shown}. Give more of the digest.")
    return min(fitting.values(), key=lambda one: one.key)


def resting_on(store: Store, keys: Iterable[str]) -> list[Artifact]:
    """Returns the keys of all artifacts made directly or indirectly from the given ones, which are included."""
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


@dataclass(frozen=True)
class SampleRound:
    """One round of an image's history. `label` is the name of a class; `error` says why the image could not be read."""

    round: int
    teacher: str  # digest
    predictions: str
    label: str | None
    confidence: float | None
    margin: float | None
    error: str | None
    selected: bool
    chosen_label: str | None  # differs from `label` after a correction
    source: str | None  # model or override
    copies: int
    selection: str | None
    student: str | None  # digest; None if none has been trained yet


@dataclass(frozen=True)
class SampleLineage:
    """The history of one image: its place, its label, and its rounds."""

    sample_id: str
    split: str
    content: str
    uri: str
    label: str | None
    rounds: tuple[SampleRound, ...]


def sample_lineage(run: Run, sample_id: str) -> SampleLineage:
    """Returns the history of an image in a run; raises NotFound if the data set has no such image."""
    dataset = run.dataset
    if dataset is None:
        raise NotFound(f"run {run.id} has no data set yet. See: selftrain status {run.id}")
    row = _row(dataset.file("manifest.parquet"), sample_id, ["split", "content", "uri", "label"])
    if row is None:
        raise NotFound(
            f"no sample '{sample_id}' in the data set of run {run.id}. List the sample ids: selftrain labels {run.id}"
        )
    classes = json.loads(dataset.file("info.json").read_text())["classes"]
    known = run.rounds()
    teachers = [one.model for one in known]
    rounds = [
        _round(one.round, sample_id, classes, teachers[number - 1], one.predictions, one.selection, one.model)
        for number, one in enumerate(known)
        if one.predictions is not None
    ]
    label = _name(classes, row["label"])
    return SampleLineage(sample_id, row["split"], row["content"], row["uri"], label, tuple(rounds))


def sample_tree(lineage: SampleLineage) -> str:
    """Draws the history of an image as a tree."""
    known = f" · {visible(lineage.label)}" if lineage.label else ""
    lines = [f"{visible(lineage.sample_id)}  {lineage.split}{known}  {lineage.content[:12]}"]
    for number, one in enumerate(lineage.rounds, 1):
        corner, bar = ("└─", "   ") if number == len(lineage.rounds) else ("├─", "│  ")
        called = f"unreadable: {visible(one.error)}" if one.error else f"{visible(str(one.label))} {one.confidence:.3f}"
        lines.append(f"{corner} round {one.round}: teacher {one.teacher[:12]} says {called}")
        if one.selected:
            other = f" as {visible(str(one.chosen_label))} ({one.source})" if one.chosen_label != one.label else ""
            student = f"student {one.student[:12]} sees" if one.student else "its student will see"
            lines.append(f"{bar}accepted{other}; {student} {one.copies} {'copy' if one.copies == 1 else 'copies'}")
        else:
            lines.append(f"{bar}rejected")
    return "\n".join(lines)


def _round(
    number: int,
    sample_id: str,
    classes: list[str],
    teacher: Artifact | None,
    predictions: Artifact,
    selection: Artifact | None,
    student: Artifact | None,
) -> SampleRound:
    predicted = _predicted(predictions, sample_id)
    chosen = None
    if selection is not None:
        columns = ["label", "copies", "source"]
        chosen = _row(selection.file("selection.parquet"), sample_id, columns)
    confidence, margin = predicted.get("confidence"), predicted.get("margin")
    return SampleRound(
        round=number,
        teacher=teacher.digest if teacher is not None else predictions.manifest["inputs"]["model"]["digest"],
        predictions=predictions.digest,
        label=_name(classes, predicted.get("label")),
        confidence=None if pd.isna(confidence) else float(confidence),
        margin=None if pd.isna(margin) else float(margin),
        error=None if pd.isna(predicted.get("error")) else str(predicted["error"]),
        selected=chosen is not None,
        chosen_label=_name(classes, chosen["label"]) if chosen is not None else None,
        source=str(chosen["source"]) if chosen is not None else None,
        copies=int(chosen["copies"]) if chosen is not None else 0,
        selection=selection.digest if selection is not None else None,
        student=student.digest if student is not None else None,
    )


def _predicted(predictions: Artifact, sample_id: str) -> dict[str, Any]:
    for path in sorted(predictions.file("shards").glob("*.parquet")):
        row = _row(path, sample_id, ["label", "confidence", "margin", "error"])
        if row is not None:
            return row
    return {}


def _row(path: Path, sample_id: str, columns: list[str]) -> dict[str, Any] | None:
    table = pd.read_parquet(path, columns=["sample_id", *columns], filters=[("sample_id", "==", sample_id)])
    return None if table.empty else {name: table[name].iloc[0] for name in columns}


def _name(classes: list[str], label: Any) -> str | None:
    return None if label is None or pd.isna(label) or int(label) < 0 else str(classes[int(label)])


def mlflow_lineage(client: "MlflowClient", model_id: str) -> Graph:
    """Returns the lineage of a logged model."""
    graph = Graph(model_id)
    _add_model(client, graph, model_id)
    return graph


def _add_model(client: "MlflowClient", graph: Graph, model_id: str) -> None:
    model = client.get_logged_model(model_id)
    details = {"run": model.source_run_id, "experiment": model.experiment_id, **model.tags}
    if graph.add(Node(model_id, "model", model.name, model.tags.get("selftrain.digest", ""), details)):
        _add_inputs(client, graph, client.get_run(str(model.source_run_id)), model_id)


def _add_inputs(client: "MlflowClient", graph: Graph, run: "MlflowRun", target: str) -> None:
    for dataset in input_datasets(run):
        _add_dataset(client, graph, dataset, run.info.experiment_id, target)
    for model_id in input_models(run):
        graph.connect(model_id, target, "model")
        _add_model(client, graph, model_id)


def _add_dataset(client: "MlflowClient", graph: Graph, dataset: "Dataset", experiment: str, target: str) -> None:
    """Adds a data set and, if a run of ours made it, everything that this run has read."""
    source = json.loads(dataset.source)
    part = source.get("part")
    node_id = f"{dataset.name}:{dataset.digest}" if part else source.get("key", dataset.digest)
    kind = "labels" if part else kind_of(source.get("stage", ""))
    graph.connect(node_id, target, part or dataset.name)
    if not graph.add(Node(node_id, kind, part or dataset.name, dataset.digest, source)) or part:
        return
    # The digest is needed too, because a failed attempt has the same key.
    filters = f"tags.`selftrain.key` = '{source.get('key')}' AND tags.`selftrain.digest` LIKE '{dataset.digest}%'"
    made_by = client.search_runs([experiment], filters, max_results=1)
    if made_by:  # a search does not return model inputs
        _add_inputs(client, graph, client.get_run(made_by[0].info.run_id), node_id)


MODELS = ("train", "given")


@dataclass(frozen=True)
class Damage:
    """One damaged file."""

    stage: str
    key: str
    file: str
    problem: str
    models: tuple[str, ...]  # the digests of the models made from it


def verify(store: Store, graph: Graph | None = None) -> list[Damage]:
    """Checks every file of a graph's artifacts, or of the whole store; returns the damaged ones."""
    artifacts = [one for one in store.artifacts() if graph is None or one.key in graph.nodes]
    artifacts.sort(key=lambda one: (one.stage, one.key))
    known = {one.key: one for one in artifacts}
    found = [(one, file, problem) for one in artifacts for file, problem in _problems(one, known)]
    missing = [] if graph is None else [node for node in graph.nodes.values() if node.label.endswith("(missing)")]
    keys = {folder: (folder.parent.name, folder.name) for folder in store.folders() if not _readable(folder)}
    damaged = [pair for pair in keys.values() if graph is None or pair[1] in graph.nodes]
    return [
        *(Damage(stage, key, MANIFEST, "is damaged", models_on(store, [key])) for stage, key in sorted(damaged)),
        *(Damage(one.stage, one.key, file, problem, models_on(store, [one.key])) for one, file, problem in found),
        *(Damage(one.label.split()[0], one.id, "", "is missing", models_on(store, [one.id])) for one in missing),
    ]


def models_on(store: Store, keys: Iterable[str]) -> tuple[str, ...]:
    """Returns the digests of the models made from the given keys."""
    return tuple(one.digest for one in resting_on(store, keys) if one.stage in MODELS)


def _readable(folder: Path) -> bool:
    try:
        return bool(read_manifest(folder))
    except DamagedArtifact:
        return False


def _problems(artifact: Artifact, known: dict[str, Artifact]) -> Iterator[tuple[str, str]]:
    files = artifact.manifest["files"]
    for name, entry in sorted(files.items()):
        path = artifact.file(name)
        if not path.is_file():
            yield name, "is missing"
        elif digest_file(path) != entry["sha256"]:
            yield name, "has changed since it was written"
    contents = {name: entry["sha256"] for name, entry in files.items() if not name.startswith("logs/")}
    if digest_json(contents) != artifact.digest:
        yield MANIFEST, "does not match its digest: it was changed"
    for role, source in artifact.manifest["inputs"].items():
        upstream = known.get(source["key"])
        if upstream is not None and upstream.digest != source["digest"]:
            yield MANIFEST, f"was made from a different {role} than the stored one: {source['digest'][:12]}"
