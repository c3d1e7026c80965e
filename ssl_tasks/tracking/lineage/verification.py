"""Are the files what their digests say? And if not, which models rest on them?"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selftrain.ssl_tasks.errors import DamagedArtifact
from selftrain.ssl_tasks.store.artifacts import MANIFEST, Artifact, Store, digest_file, digest_json, read_manifest
from selftrain.ssl_tasks.tracking.lineage.graph import Graph
from selftrain.ssl_tasks.tracking.lineage.trace import resting_on

MODELS = ("train", "given")


@dataclass(frozen=True)
class Damage:
    """One file that is not what it was."""

    stage: str
    key: str
    file: str
    problem: str
    models: tuple[str, ...]  # the digests of the models that rest on it


def verify(store: Store, graph: Graph | None = None) -> list[Damage]:
    """Checks every file above a graph's root, or of the whole store."""
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
    """The digests of the models that were made from these keys."""
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
            yield name, "has other contents than when it was written"
    contents = {name: entry["sha256"] for name, entry in files.items() if not name.startswith("logs/")}
    if digest_json(contents) != artifact.digest:
        yield MANIFEST, "names files that do not make up its digest: it was changed"
    for role, source in artifact.manifest["inputs"].items():
        upstream = known.get(source["key"])
        if upstream is not None and upstream.digest != source["digest"]:
            yield MANIFEST, f"was made from another {role} than is there now: {source['digest'][:12]}"
