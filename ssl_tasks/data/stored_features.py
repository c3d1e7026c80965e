"""Reads the stored features of a data set's images as one matrix, and defines the layout of the artifact.

A features artifact holds
    features.json         the backbone, its number of features, and the shards with their numbers of rows
    shards/part-00000.parquet …   columns sample_id and features (float16), of consecutive images of the manifest
    backbone/             the frozen network as a trained model's two files; its head is all zeros
Parquet cannot be mapped into memory. So the first process that opens an artifact writes its vectors, one after the
other, to a file of the workspace's cache, and all processes map that file.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selftrain.ssl_tasks.errors import ConfigError, DamagedArtifact, brief
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.locks import file_lock

DESCRIPTION, BACKBONE, SHARDS = "features.json", "backbone", "shards"
SCHEMA_VERSION = 1
GROUP_ROWS = 1_024  # rows of a row group: 2.6 MB at 1,280 features


@dataclass(frozen=True)
class StoredFeatures:
    """All vectors of a features artifact, and the ids of their images."""

    artifact: Artifact
    backbone: str  # digest of the network and its input; features of the same digest are comparable
    matrix: NDArray[np.float16]  # [n, D], mapped from a file
    sample_ids: pa.ChunkedArray

    @classmethod
    def open(cls, artifact: Artifact, cache: Path) -> "StoredFeatures":
        """Maps the vectors into memory; first writes the mapped file if the cache lacks it."""
        described = json.loads(artifact.file(DESCRIPTION).read_text())
        if described["schema"] != SCHEMA_VERSION:
            raise DamagedArtifact(
                f"{artifact.path} has features of schema {described['schema']}; this version reads {SCHEMA_VERSION}. "
                "Compute them again with --force"
            )
        files = [artifact.file(SHARDS) / shard["file"] for shard in described["shards"]]
        shape = sum(shard["rows"] for shard in described["shards"]), described["features"]
        ids = pa.chunked_array(
            [pq.read_table(file, columns=["sample_id"])["sample_id"].combine_chunks() for file in files]
        )
        return cls(artifact, described["backbone"], mapped(files, cache / "features" / artifact.digest, shape), ids)

    @classmethod
    def of_model(cls, inputs: Mapping[str, Artifact], role: str, cache: Path) -> "StoredFeatures | None":
        """Returns the features that a model among a stage's inputs reads (`features` for `model`), if given."""
        given = inputs.get(role.replace("model", "features"))
        if given is None:
            return None
        stored = cls.open(given, cache)
        stored.require(inputs[role].summary.get("backbone", "none"), f"the {role}")
        return stored

    def rows(self, sample_ids: pa.ChunkedArray, role: str = "the data set") -> NDArray[np.int64]:
        """Returns the rows of these images; ConfigError if one of them has no vector."""
        found = pc.index_in(sample_ids.cast(pa.string()), self.sample_ids)
        if found.null_count:
            missing = sample_ids.filter(pc.is_null(found))
            raise ConfigError(
                f"{role} has {len(missing):,} images without stored features ({brief(missing[:10].to_pylist(), 3)}). "
                "Expected features of the same data set: run its recipe again"
            )
        return found.to_numpy().astype(np.int64)

    def require(self, backbone: str, role: str) -> None:
        """Raises ConfigError if a model's head was fitted on features of another network."""
        if backbone != self.backbone:
            raise ConfigError(
                f"{role} was fitted on features of the backbone {backbone[:12]}, and the stored features are of "
                f"{self.backbone[:12]}; expected the same network, image size, normalisation and views. Compute the "
                "features with the model's own backbone"
            )


def mapped(files: list[Path], path: Path, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Returns the vectors of all shards, read-only. The file gets its name when it is complete."""
    if not shape[0]:
        return np.empty(shape, np.float16)
    size = 2 * shape[0] * shape[1]
    with file_lock(path.with_suffix(".lock")):
        if not path.exists() or path.stat().st_size != size:
            temporary = path.with_name(f".{path.name}.tmp")
            with temporary.open("wb") as target:  # not through a map: a full disk would kill the process with SIGBUS
                for file in files:
                    with pq.ParquetFile(file) as source:
                        for batch in source.iter_batches(GROUP_ROWS, columns=["features"]):
                            target.write(batch["features"].flatten().to_numpy())
                target.flush()
                os.fsync(target.fileno())
            os.replace(temporary, path)
    return np.asarray(np.memmap(path, np.float16, "r")).reshape(shape)


def features_bytes(sample_ids: list[str], vectors: NDArray[np.float16]) -> bytes:
    """Returns a shard's file; equal vectors give equal bytes."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"sample_id": pa.array(sample_ids, pa.string()), "features": column})
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, sink, row_group_size=GROUP_ROWS, **options)
    return sink.getvalue().to_pybytes()
