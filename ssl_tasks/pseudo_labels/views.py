"""Defines four SQL views over all rounds of a run, and writes results of queries as CSV, JSON or Parquet.

    manifest     sample_id, label, class, split, content, uri, width, height, mode, error, truth
    predictions  round, sample_id, position, label, class, confidence, margin, entropy, view_agreement,
                 feature_distance, probs, classes (where only the largest are stored), error
    selection    round, sample_id, position, label, class, confidence, rank_in_class, copies, source, probs
    rounds       round, candidates, kept, copies, overrides, rejected, excluded, temperature, teachers
`truth` is the ground truth of unlabelled images, if the source knows it, for audits. Results are written batch by batch
while the query computes.
"""

import contextlib
import itertools
import json
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from selftrain.ssl_tasks.errors import OutOfMemory, QueryTimeout, UserError
from selftrain.ssl_tasks.pseudo_labels.engine import literal, open_spilling, read_parquet, saying_what_is_full
from selftrain.ssl_tasks.pseudo_labels.schema import SELECTION, STATS, Predictions
from selftrain.ssl_tasks.store.csv_text import write_frame

BATCH_ROWS = 8192
ARROW_HIDES = {
    "INTERRUPT": duckdb.InterruptException,
    "Out of Memory": duckdb.OutOfMemoryException,
    "IO Error": duckdb.IOException,
    "Permission": duckdb.PermissionException,
}
NO_PREDICTIONS = (
    "SELECT NULL::INTEGER AS round, NULL::VARCHAR AS sample_id, NULL::BIGINT AS position, NULL::INTEGER AS label, "
    "NULL::FLOAT AS confidence, NULL::FLOAT AS margin, NULL::FLOAT AS entropy, NULL::FLOAT AS view_agreement, "
    "NULL::FLOAT AS feature_distance, NULL::FLOAT[] AS probs, NULL::VARCHAR AS error WHERE false"
)
NO_SELECTION = (
    "SELECT NULL::INTEGER AS round, NULL::VARCHAR AS sample_id, NULL::BIGINT AS position, NULL::INTEGER AS label, "
    "NULL::FLOAT AS confidence, NULL::INTEGER AS rank_in_class, NULL::INTEGER AS copies, NULL::VARCHAR AS source, "
    "NULL::FLOAT[] AS probs WHERE false"
)
NO_ROUNDS = (
    "SELECT NULL::INTEGER AS round, NULL::BIGINT AS candidates, NULL::BIGINT AS kept, NULL::BIGINT AS copies, "
    "NULL::BIGINT AS overrides, NULL::BIGINT AS rejected, NULL::BIGINT AS excluded, NULL::DOUBLE AS temperature, "
    "NULL::VARCHAR[] AS teachers WHERE false"
)


@dataclass(frozen=True)
class RoundTables:
    """The artifacts' folders of one round; the selection may not exist yet."""

    round: int
    predictions: Path
    selection: Path | None = None


@dataclass(frozen=True)
class RunTables:
    """The artifacts' folders of a run's tables."""

    dataset: Path
    rounds: Sequence[RoundTables]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(json.loads((self.dataset / "info.json").read_text())["classes"])

    @property
    def files(self) -> list[Path]:
        """Returns every file that a view reads."""
        found = [self.dataset / "manifest.parquet", self.dataset / "truth.parquet"]
        for one in self.rounds:
            found += Predictions.open(one.predictions).files
            found += [] if one.selection is None else [one.selection / SELECTION]
        return found


@contextlib.contextmanager
def open_tables(tables: RunTables, memory_gb: float = 1.0) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yields a connection with the four views, in a new in-memory database."""
    with open_spilling(memory_gb) as opened:
        for name, query in view_queries(tables).items():
            opened.execute(f"CREATE VIEW {name} AS {query}")
        yield opened


def view_queries(tables: RunTables) -> dict[str, str]:
    """Returns the query of each view by its name."""
    names = ", ".join(map(literal, tables.classes))

    def named(query: str) -> str:
        name = f"CASE WHEN label >= 0 THEN list_extract([{names}], label + 1) END"
        return f"SELECT *, {name} AS class FROM ({query})"

    predictions = [
        f"SELECT {one.round} AS round, * FROM {Predictions.open(one.predictions).with_positions()}"
        for one in tables.rounds
    ]
    selections = [
        f"SELECT {one.round} AS round, * FROM {read_parquet(one.selection / SELECTION)}"
        for one in tables.rounds
        if one.selection is not None
    ]
    manifest = (
        f"SELECT m.*, t.label AS truth FROM {read_parquet(tables.dataset / 'manifest.parquet')} m "
        f"LEFT JOIN {read_parquet(tables.dataset / 'truth.parquet')} t USING (sample_id)"
    )
    return {
        "manifest": named(manifest),
        "predictions": named(" UNION ALL BY NAME ".join(predictions or [NO_PREDICTIONS])),
        "selection": named(" UNION ALL BY NAME ".join([NO_SELECTION, *selections])),
        "rounds": " UNION ALL BY NAME ".join([round_query(one) for one in tables.rounds] or [NO_ROUNDS]),
    }


def round_query(one: RoundTables) -> str:
    """Returns the query for a round's row of the view `rounds`."""
    description = Predictions.open(one.predictions).description
    stats = {} if one.selection is None else json.loads((one.selection / STATS).read_text())
    numbers = ("candidates", "kept", "copies", "overrides", "rejected", "excluded")
    columns = [f"{stats.get(name, 'NULL')}::BIGINT AS {name}" for name in numbers]
    teachers = ", ".join(map(literal, description["teachers"]))
    return (
        f"SELECT {one.round} AS round, {', '.join(columns)}, {description['temperature']}::DOUBLE AS temperature, "
        f"[{teachers}]::VARCHAR[] AS teachers"
    )


@dataclass(frozen=True)
class Answer:
    """The result of a query; its batches are computed while they are read."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def sql(tables: RunTables, query: str, memory_gb: float = 1.0, timeout: float | None = None) -> pd.DataFrame:
    """Returns the result of one SELECT over the views. The query can read nothing else, and write nothing.

    `memory_gb` limits the query, and separately the result; `open_answer` streams a result of any size.
    """
    found, held = list[pa.RecordBatch](), 0
    with open_answer(tables, query, memory_gb, timeout) as answer:
        for batch in answer.batches:
            held += batch.nbytes
            if held > memory_gb * 2**30:
                raise OutOfMemory(
                    f"the result is larger than {memory_gb:g} GiB, the limit. Ask for fewer rows or "
                    "columns, or write it to a file: selftrain sql RUN QUERY --csv FILE"
                )
            found.append(batch)
        return pa.Table.from_batches(found, answer.schema).to_pandas()


@contextlib.contextmanager
def open_answer(
    tables: RunTables, query: str, memory_gb: float = 1.0, timeout: float | None = None
) -> Iterator[Answer]:
    """Yields the result of one SELECT over the views, in memory that does not grow with the number of rows."""
    with (
        open_tables(tables, memory_gb) as connection,
        _saying_what_is_wrong(),
        _time_limit(connection, timeout) as late,
    ):
        lock(connection, tables.files)
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the query is not UTF-8 text ({error}); expected one SELECT") from error
        statements = connection.extract_statements(query)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            found = ", ".join(statement.type.name for statement in statements) or "no statement"
            raise UserError(
                f"found {found}; expected one SELECT (or DESCRIBE, SHOW TABLES) over manifest, predictions, "
                "selection and rounds: the tables are read-only"
            )
        reader = connection.sql(statements[0]).to_arrow_reader(BATCH_ROWS)
        schema = _plain(reader.schema)
        batches = (pa.record_batch(batch.columns, schema.names).cast(schema) for batch in _read(reader, late))
        yield Answer(schema, batches)


def _plain(schema: pa.Schema) -> pa.Schema:
    """Makes names unique (a, a_1), and turns decimals, such as sums of whole numbers, into floating-point numbers."""
    columns: dict[str, pa.Field] = {}
    for one in schema:
        numbered = (f"{one.name}_{number}" for number in itertools.count(1))
        name = next(name for name in itertools.chain([one.name], numbered) if name not in columns)
        columns[name] = pa.field(name, pa.float64() if pa.types.is_decimal(one.type) else one.type)
    return pa.schema(columns.values())


def _read(reader: pa.RecordBatchReader, late: threading.Event) -> Iterator[pa.RecordBatch]:
    """Yields the batches; restores DuckDB's errors, of which Arrow keeps only the text."""
    try:
        for batch in reader:
            if late.is_set():
                raise duckdb.InterruptException("between two batches")
            yield batch
    except OSError as error:
        kind = next((kind for text, kind in ARROW_HIDES.items() if str(error).startswith(text)), duckdb.Error)
        raise kind(str(error)) from error


@contextlib.contextmanager
def _saying_what_is_wrong() -> Iterator[None]:
    """Turns an error of DuckDB or Arrow into an error of the query."""
    try:
        yield
    except duckdb.PermissionException as error:
        raise UserError(
            "a query reads the views manifest, predictions, selection and rounds, and no other file: "
            f"{first_line(error)}"
        ) from error
    except (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InterruptException):
        raise  # said by `open_duckdb`
    except MemoryError as error:  # Arrow raises it, too
        raise OutOfMemory("the result needed more memory than is allowed. Ask for fewer rows or columns") from error
    except (duckdb.Error, pa.ArrowException) as error:
        raise UserError(f"{error}") from error


@contextlib.contextmanager
def _time_limit(connection: duckdb.DuckDBPyConnection, timeout: float | None) -> Iterator[threading.Event]:
    """Raises QueryTimeout if the block takes longer than `timeout` seconds; the yielded event is then set."""
    late = threading.Event()

    def stop() -> None:
        late.set()
        connection.interrupt()

    timer = threading.Timer(timeout or 0, stop)
    timer.daemon = True
    if timeout is not None:
        timer.start()
    try:
        yield late
    except duckdb.InterruptException as error:
        if not late.is_set():
            raise  # a signal's: said by `open_duckdb`
        raise QueryTimeout(
            f"the query took longer than {timeout:g} s; expected less. Ask for less, or allow more time: "
            "selftrain sql RUN QUERY --timeout SECONDS"
        ) from error
    finally:
        timer.cancel()


def lock(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    """Restricts the connection to reading these files; this cannot be undone."""
    allowed = ", ".join(map(literal, files))
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET max_temp_directory_size = '16GB'")
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


# Whole numbers stay whole even if some are missing.
WHOLE = {
    pa.bool_(): pd.BooleanDtype(),
    **{getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")() for name in ("Int8", "Int16", "Int32", "Int64")},
    **{getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")() for name in ("UInt8", "UInt16", "UInt32", "UInt64")},
}


def frames(answer: Answer) -> Iterator[pd.DataFrame]:
    """Yields the batches as data frames; the first has no rows, so that there is always one."""
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
    """Yields a temporary path whose file gets the given name once it is complete; a pipe is written directly."""
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
