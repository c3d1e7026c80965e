"""Where a benchmark knows the truth: how right the invented labels are. Read afterwards, never by a stage's body."""

import pyarrow.compute as pc
import pyarrow.parquet as pq

from selftrain.ssl_tasks.store.artifacts import Artifact

COLUMNS = ["sample_id", "label"]


def true_precision(dataset: Artifact, selection: Artifact) -> float | None:
    """The share of selected pseudo-labels that are right, among those whose truth is known; None where none is."""
    truth = pq.ParquetFile(dataset.file("truth.parquet")).read(COLUMNS)
    chosen = pq.ParquetFile(selection.file("selection.parquet")).read(COLUMNS)
    at = pc.index_in(chosen["sample_id"], truth["sample_id"])
    known = truth["label"].take(at)  # null where nobody knows
    return pc.mean(pc.equal(chosen["label"], known)).as_py()
