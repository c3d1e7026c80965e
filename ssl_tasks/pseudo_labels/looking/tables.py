"""Columns of numbers become Arrow tables and Parquet files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selftrain.ssl_tasks.pseudo_labels.looking.schema import shard_schema

Columns = Mapping[str, NDArray[Any]]
METADATA = b"selftrain"
GROUP_ROWS = 65_536


def prediction_table(sample_ids: Sequence[str], batches: Sequence[Columns]) -> pa.Table:
    """The rows of a shard from the columns of its batches."""
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    layout = shard_schema(sparse="classes" in columns)
    arrays = [pa.array(sample_ids, pa.string())]
    for item in list(layout)[1:-1]:
        values = columns[item.name]
        is_list = pa.types.is_list(item.type)
        arrays.append(list_array(values, item.type) if is_list else pa.array(values, item.type, from_pandas=True))
    return pa.Table.from_arrays([*arrays, pa.nulls(len(sample_ids), pa.string())], schema=layout)


def list_array(rows: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """[n, k] as n lists of k."""
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.ravel(), kind.value_type), type=kind)


def unreadable_table(unreadable: Sequence[tuple[str, str]], sparse: bool) -> pa.Table:
    """Rows of images without a label, and why they have none."""
    layout, rows = shard_schema(sparse), len(unreadable)
    known = {"sample_id": [sample for sample, _ in unreadable], "error": [reason for _, reason in unreadable]}
    arrays = [
        pa.array(known[item.name], item.type) if item.name in known else pa.nulls(rows, item.type) for item in layout
    ]
    return pa.Table.from_arrays(arrays, schema=layout)


def held_out_table(table: pa.Table, truth: NDArray[np.int64], fitted: NDArray[np.bool_]) -> pa.Table:
    """Predictions of held-out images with what they are, and whether the temperature was fitted on them."""
    return table.append_column("truth", pa.array(truth, pa.int32())).append_column(
        "fitted", pa.array(fitted, pa.bool_())
    )


def parquet_bytes(table: pa.Table, description: Mapping[str, Any]) -> bytes:
    """The file's content; equal tables are equal bytes."""
    sink = pa.BufferOutputStream()
    described = table.replace_schema_metadata({METADATA: json.dumps(description, sort_keys=True)})
    pq.write_table(described, sink, compression="zstd", row_group_size=GROUP_ROWS, use_dictionary=["label", "error"])
    return sink.getvalue().to_pybytes()
