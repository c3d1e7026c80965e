"""Defines the layout of prediction tables on disk, writes them, and reads them with SQL.

A predictions artifact holds
    predictions.json       classes, teachers, temperature, digests of the data; shards with first positions
    shards/part-00000.parquet …   consecutive images of the unlabelled pool; unreadable ones in the last file
        validation.parquet     the same columns for the held-out labelled images: thresholds are chosen on them
    calibration.json
A shard stores no positions, so that images added before it do not change it and it is reused. The position of a row is
the first position of its shard plus its number in the shard.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selftrain.ssl_tasks.errors import DamagedArtifact
from selftrain.ssl_tasks.pseudo_labels.engine import read_parquet

SCHEMA_VERSION = 1
DESCRIPTION, VALIDATION, CALIBRATION = "predictions.json", "validation.parquet", "calibration.json"
SELECTION, STATS, OVERRIDES = "selection.parquet", "stats.json", "overrides.parquet"
MOST_DENSE_CLASSES, SPARSE_TOP_K = 256, 16


def stored_classes(num_classes: int, top_k: int | None) -> int:
    """Returns how many probabilities of a row are stored."""
    wanted = top_k or (num_classes if num_classes <= MOST_DENSE_CLASSES else SPARSE_TOP_K)
    return min(wanted, num_classes)


def shard_schema(sparse: bool) -> pa.Schema:
    """Returns the columns of a shard; `classes` names the stored probabilities if not all are stored."""
    fields = [
        ("sample_id", pa.string()),
        ("label", pa.int32()),  # null if the image could not be read
        ("confidence", pa.float32()),  # probability of the label
        ("margin", pa.float32()),  # difference to the second class's probability
        ("entropy", pa.float32()),  # in nats
        (
            "view_agreement",
            pa.float32(),
        ),  # share of the views and ensemble members that predict this label by themselves
        ("feature_distance", pa.float32()),  # cosine distance to the class's mean; null without validation images
        ("probs", pa.list_(pa.float16())),
    ]
    if sparse:
        fields.append(("classes", pa.list_(pa.int16())))
    return pa.schema([*fields, ("error", pa.string())])


@dataclass(frozen=True)
class Predictions:
    """A predictions artifact: its folder and its description."""

    folder: Path
    description: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Predictions":
        """Opens an artifact by reading its predictions.json."""
        description = json.loads((folder / DESCRIPTION).read_text())
        if description["schema"] != SCHEMA_VERSION:
            raise DamagedArtifact(
                f"{folder} has predictions of schema {description['schema']}; this version reads {SCHEMA_VERSION}. "
                "Predict again with --force"
            )
        return cls(folder, description)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.description["classes"])

    @property
    def sparse(self) -> bool:
        """Returns whether only the top k probabilities are stored, with `classes` beside them."""
        return self.description["stored_classes"] < len(self.classes)

    @property
    def files(self) -> list[Path]:
        """Returns the shards' files, in the order of the pool."""
        return [self.folder / "shards" / shard["file"] for shard in self.description["shards"]]

    @property
    def first_positions(self) -> list[int | None]:
        """Returns the position of each shard's first row; None for the shard of unreadable images."""
        return [shard["first"] for shard in self.description["shards"]]

    def table(self) -> str:
        """Returns the SQL table of all shards; `file_index` and `file_row_number` identify a row."""
        return read_parquet(self.files)

    def position(self, file_index: str = "file_index", row: str = "file_row_number") -> str:
        """Returns the SQL expression for a row's position in the unlabelled pool; null if it could not be read."""
        firsts = ", ".join("NULL" if first is None else str(first) for first in self.first_positions)
        return f"(list_extract([{firsts}]::BIGINT[], ({file_index} + 1)::BIGINT) + {row})"

    def with_positions(self) -> str:
        """Returns the SQL query of the whole table for users, with `position` after `sample_id`."""
        return f"(SELECT sample_id, {self.position()} AS position, * EXCLUDE (sample_id) FROM {self.table()})"


Columns = Mapping[str, NDArray[Any]]
METADATA = b"selftrain"
GROUP_ROWS = 65_536


def prediction_table(sample_ids: Sequence[str], batches: Sequence[Columns]) -> pa.Table:
    """Builds the rows of a shard from the columns of its batches."""
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    layout = shard_schema(sparse="classes" in columns)
    arrays = [pa.array(sample_ids, pa.string())]
    for item in list(layout)[1:-1]:
        values = columns[item.name]
        is_list = pa.types.is_list(item.type)
        arrays.append(list_array(values, item.type) if is_list else pa.array(values, item.type, from_pandas=True))
    return pa.Table.from_arrays([*arrays, pa.nulls(len(sample_ids), pa.string())], schema=layout)


def list_array(rows: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Converts [n, k] to n lists of k values."""
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.ravel(), kind.value_type), type=kind)


def unreadable_table(unreadable: Sequence[tuple[str, str]], sparse: bool) -> pa.Table:
    """Returns the rows of unreadable images, with the reasons."""
    layout, rows = shard_schema(sparse), len(unreadable)
    known = {"sample_id": [sample for sample, _ in unreadable], "error": [reason for _, reason in unreadable]}
    arrays = [
        pa.array(known[item.name], item.type) if item.name in known else pa.nulls(rows, item.type) for item in layout
    ]
    return pa.Table.from_arrays(arrays, schema=layout)


def held_out_table(table: pa.Table, truth: NDArray[np.int64], fitted: NDArray[np.bool_]) -> pa.Table:
    """Adds the ground truth to predictions of held-out images, and whether the temperature was fitted on them."""
    return table.append_column("truth", pa.array(truth, pa.int32())).append_column(
        "fitted", pa.array(fitted, pa.bool_())
    )


def parquet_bytes(table: pa.Table, description: Mapping[str, Any]) -> bytes:
    """Returns the file's content; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    described = table.replace_schema_metadata({METADATA: json.dumps(description, sort_keys=True)})
    pq.write_table(described, sink, compression="zstd", row_group_size=GROUP_ROWS, use_dictionary=["label", "error"])
    return sink.getvalue().to_pybytes()
