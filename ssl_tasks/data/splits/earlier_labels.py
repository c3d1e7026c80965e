"""A model that is given may have learned the labels of images that are validation or test now: splits move."""

import contextlib
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selftrain.ssl_tasks.errors import DamagedArtifact
from selftrain.ssl_tasks.store.artifacts import Artifact, Store, read_manifest

HELD_OUT = ("validation", "test")
log = logging.getLogger("selftrain")


def warn_of_earlier_labels(model: Path, dataset: Artifact) -> None:
    """One line where a given model was trained on labels that shall judge it. Silent where nobody knows."""
    with contextlib.suppress(OSError, DamagedArtifact):
        if known := earlier_labels(model, dataset):
            log.warning(
                "%s learned the labels of %s images of this data set, on which it therefore looks better than it is. "
                "Train a teacher anew, and let the source name the images that shall stay held out",
                model,
                " and ".join(f"{count} {name}" for name, count in known.items()),
            )


def earlier_labels(model: Path, dataset: Artifact) -> dict[str, int]:
    """How many images of a split were labelled ones when a model in a store was trained, where there are any."""
    earlier = trained_on(model.resolve())
    if earlier is None:
        return {}
    changed = [name for name in HELD_OUT if earlier.parts.get(name) != dataset.parts[name]]
    learned = contents(earlier, "labeled") if changed else None
    found = {name: pc.sum(pc.is_in(contents(dataset, name), learned)).as_py() for name in changed}
    return {name: count for name, count in found.items() if count}


def trained_on(model: Path) -> Artifact | None:
    """The data set from which a model in a store was made; None elsewhere, and where it was cleaned away."""
    made = read_manifest(model)["inputs"].get("dataset")
    return None if made is None else Store(model.parents[1]).unchecked(made["stage"], made["key"])


def contents(dataset: Artifact, split: str) -> pa.ChunkedArray:
    """What the readable images of a split hold."""
    rows = pq.read_table(dataset.file("manifest.parquet"), columns=["content"], filters=[("split", "==", split)])
    return rows["content"].drop_null()
