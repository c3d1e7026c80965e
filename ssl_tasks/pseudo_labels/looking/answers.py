"""The answer to a query as CSV, JSON or Parquet, written batch by batch while the query computes."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from selftrain.ssl_tasks.errors import UserError
from selftrain.ssl_tasks.pseudo_labels.looking.engine import saying_what_is_full
from selftrain.ssl_tasks.pseudo_labels.looking.views import Answer
from selftrain.ssl_tasks.store.csv_text import write_frame

# Whole numbers stay whole where some are missing.
WHOLE = {
    pa.bool_(): pd.BooleanDtype(),
    **{getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")() for name in ("Int8", "Int16", "Int32", "Int64")},
    **{getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")() for name in ("UInt8", "UInt16", "UInt32", "UInt64")},
}


def frames(answer: Answer) -> Iterator[pd.DataFrame]:
    """The batches as data frames; the first has no rows, so that there is one."""
    yield _frame(answer.schema.empty_table())
    for batch in answer.batches:
        yield _frame(pa.Table.from_batches([batch]))


def _frame(table: pa.Table) -> pd.DataFrame:
    with _saying_what_to_cast():
        return table.to_pandas(types_mapper=WHOLE.get)


@contextlib.contextmanager
def _saying_what_to_cast() -> Iterator[None]:
    try:
        yield
    except (ValueError, OverflowError, TypeError) as error:
        raise UserError(f"a value cannot be shown ({error}). Cast its column: select column::varchar …") from error


def write_csv(answer: Answer, file: TextIO) -> int:
    """Writes a header and all rows; returns their number."""
    rows = 0
    for number, frame in enumerate(frames(answer)):
        write_frame(frame, file, header=not number)
        rows += len(frame)
    return rows


def write_json(answer: Answer, file: TextIO) -> int:
    """Writes a list of objects, one for each row; returns their number."""
    rows, between = 0, "["
    for frame in frames(answer):
        if len(frame):
            with _saying_what_to_cast():
                text = frame.to_json(orient="records", default_handler=str)
            file.write(between + text[1:-1])
            rows, between = rows + len(frame), ","
    file.write("]\n" if rows else "[]\n")
    return rows


def write_parquet(answer: Answer, path: Path) -> int:
    """Writes all rows; returns their number."""
    rows = 0
    with pq.ParquetWriter(path, answer.schema) as writer:
        for batch in answer.batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


@contextlib.contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A temporary path whose file takes the given name once it is whole; a pipe or a device is written to directly."""
    with saying_what_is_full(path.absolute().parent):
        if path.exists() and not path.is_file():
            yield path
            return
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{uuid.uuid4().hex[:12]}.tmp")
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
