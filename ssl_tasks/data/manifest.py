"""Defines the columns of a dataset artifact's files, and writes them column by column."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selftrain.ssl_tasks.data.sources.base import SPLITS
from selftrain.ssl_tasks.data.splits import UNLABELED
from selftrain.ssl_tasks.data.survey import Survey

ROWS = 65_536  # rows of a row group, and of a piece of a digest

MANIFEST = pa.schema(
    [
        ("sample_id", pa.string()),
        ("label", pa.int32()),  # -1 for unlabelled images
        ("split", pa.string()),
        ("content", pa.string()),  # equal contents, equal images; null where unreadable
        ("uri", pa.string()),  # the name by which the source reads it
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("error", pa.string()),  # why it is in no pool
    ]
)
TRUTH = pa.schema([("sample_id", pa.string()), ("label", pa.int32())])


def manifest_table(found: Survey) -> pa.Table:
    """Returns one row per sample, in the source's order, without labels that training must not know."""
    label = np.where(found.split == UNLABELED, -1, found.given).astype(np.int32)
    columns = [
        found.listing.ids,
        pa.array(label),
        pa.array(SPLITS).take(pa.array(found.split)),
        found.swept.contents,
        found.listing.uris,
        found.swept.width,
        found.swept.height,
        found.swept.mode,
        found.errors,
    ]
    return pa.Table.from_arrays(columns, schema=MANIFEST)


def truth_table(found: Survey) -> pa.Table:
    """Returns the labels that are known and that training must not know."""
    told = (found.split != UNLABELED) & (found.given == found.samples.labels)
    hidden = pa.array(np.flatnonzero(~told & (found.samples.labels >= 0)))
    labels = pa.array(found.samples.labels).take(hidden)
    return pa.Table.from_arrays([found.listing.ids.take(hidden), labels], schema=TRUTH)


def write_table(table: pa.Table, path: Path) -> None:
    """Writes Parquet, one row group at a time."""
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for start in range(0, max(1, len(table)), ROWS):
            writer.write_table(table.slice(start, ROWS))


def part_digests(table: pa.Table, info: Mapping[str, Any], with_labeled: bool) -> dict[str, str]:
    """Returns a digest of each split's samples, so that a stage can depend on one split only."""
    parts = {}
    for name in SPLITS:
        names = [name, "labeled"] if name == "unlabeled" and with_labeled else [name]
        digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode())
        rows = table.select(["sample_id", "label", "content", "error"])
        rows = rows.filter(pc.is_in(table["split"], pa.array(names)))
        for start in range(0, len(rows), ROWS):
            piece = rows.slice(start, ROWS).to_pydict()
            if name == "unlabeled":
                del piece["label"]  # who among them is labelled is the labelled part's matter
            digest.update(json.dumps(piece, sort_keys=True).encode())
        parts[name] = digest.hexdigest()
    return parts
