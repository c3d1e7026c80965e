"""All rounds of a run as four SQL views: manifest, predictions, selection, rounds; and questions in SQL about them.

    manifest     sample_id, label, class, split, content, uri, width, height, mode, error, truth
    predictions  round, sample_id, position, label, class, confidence, margin, entropy, view_agreement,
                 feature_distance, probs, classes (where only the largest are stored), error
    selection    round, sample_id, position, label, class, confidence, rank_in_class, copies, source, probs
    rounds       round, candidates, kept, copies, overrides, rejected, excluded, temperature, teachers
`truth` is the hidden truth of unlabelled images where somebody knows it, for audit.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd

from ssl_tasks.errors import UserError
from ssl_tasks.pseudo_labels.engine import literal, open_duckdb, read_parquet
from ssl_tasks.pseudo_labels.schema import SELECTION, STATS, Predictions

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
    """The artifacts' folders of one round; a selection may not be there yet."""

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
        """Every file that a view reads."""
        found = [self.dataset / "manifest.parquet", self.dataset / "truth.parquet"]
        for one in self.rounds:
            found += Predictions.open(one.predictions).files
            found += [] if one.selection is None else [one.selection / SELECTION]
        return found


@contextlib.contextmanager
def open_tables(tables: RunTables, memory_gb: float = 1.0) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the four views, in a fresh in-memory database."""
    with (
        tempfile.TemporaryDirectory(prefix="selftrain-sql-") as scratch,
        open_duckdb(Path(scratch), memory_gb) as opened,
    ):
        for name, query in view_queries(tables).items():
            opened.execute(f"CREATE VIEW {name} AS {query}")
        yield opened


def view_queries(tables: RunTables) -> dict[str, str]:
    """Name → query of each view."""
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
    """One line about a round."""
    description = Predictions.open(one.predictions).description
    stats = {} if one.selection is None else json.loads((one.selection / STATS).read_text())
    numbers = ("candidates", "kept", "copies", "overrides", "rejected", "excluded")
    columns = [f"{stats.get(name, 'NULL')}::BIGINT AS {name}" for name in numbers]
    teachers = ", ".join(map(literal, description["teachers"]))
    return (
        f"SELECT {one.round} AS round, {', '.join(columns)}, {description['temperature']}::DOUBLE AS temperature, "
        f"[{teachers}]::VARCHAR[] AS teachers"
    )


def sql(tables: RunTables, query: str, memory_gb: float = 1.0) -> pd.DataFrame:
    """The answer to one SELECT over the views. It can read nothing else, and write nothing."""
    with open_tables(tables, memory_gb) as connection:
        lock(connection, tables.files)
        try:
            statements = connection.extract_statements(query)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                found = ", ".join(statement.type.name for statement in statements) or "no statement"
                raise UserError(
                    f"found {found}; expected one SELECT (or DESCRIBE, SHOW TABLES) over manifest, predictions, "
                    "selection and rounds: the tables are read-only"
                )
            return connection.execute(statements[0]).df()
        except duckdb.PermissionException as error:
            raise UserError(
                "a query reads the views manifest, predictions, selection and rounds, and no other file: "
                f"{first_line(error)}"
            ) from error
        except (duckdb.OutOfMemoryException, duckdb.IOException):
            raise  # told by `open_duckdb`
        except duckdb.Error as error:
            raise UserError(f"{error}") from error


def lock(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    """From here on these files can be read, nothing else, and this cannot be taken back."""
    allowed = ", ".join(map(literal, files))
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET max_temp_directory_size = '16GB'")
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
