"""What people say of single samples: a label, or `reject`. It wins over the model, and is carried to later rounds."""

import logging
from pathlib import Path

import duckdb
import pyarrow as pa

from ssl_tasks.artifacts import digest_file
from ssl_tasks.errors import DataError, nearest
from ssl_tasks.pseudo_labels.engine import literal, read_parquet

log = logging.getLogger(__name__)
REJECT = "reject"
SHOWN = 10  # samples named in a message
TABLE = "CREATE TEMP TABLE {name} (sample_id VARCHAR, label INTEGER, origin VARCHAR)"  # label null: reject

JUDGED = """
    SELECT o.sample_id, o.label, o.origin, CASE
        WHEN m.sample_id IS NULL THEN 'not in the data'
        WHEN e.reason = 'labeled' THEN 'labelled already: correct it in the source'
        WHEN e.reason IS NOT NULL THEN 'of validation or test, or the same image as one of these'
        WHEN m.error IS NOT NULL THEN 'unreadable: ' || m.error
        WHEN o.label < 0 THEN 'no such class'
    END AS problem
    FROM {table} o LEFT JOIN {manifest} m USING (sample_id) LEFT JOIN excluded e USING (sample_id)
    ORDER BY sample_id
"""


def define_overrides(
    connection: duckdb.DuckDBPyConnection,
    path: Path | None,
    carried: Path | None,
    manifest: Path,
    classes: tuple[str, ...],
    corrections: Path | None = None,
) -> int:
    """Table `overrides`: the workspace's corrections, then the recipe's file, then what earlier rounds carried.

    The recipe's file must fit the data. Of the others, what fits no more is passed over; returns how many these are.
    """
    connection.execute(TABLE.format(name="overrides"))
    forgotten = 0
    if corrections is not None:
        read_file(connection, "applied", corrections, classes, strict=False)
        forgotten += pass_over(connection, "applied", manifest, str(corrections))
        add_fitting(connection, "applied", manifest)
    if path is not None:
        read_file(connection, "given", path, classes)
        check(connection, "given", manifest, path)
        add_fitting(connection, "given", manifest)
    if carried is not None:
        connection.execute(
            f"CREATE TEMP TABLE carried AS SELECT sample_id, label, origin FROM {read_parquet(carried)} "
            "WHERE sample_id NOT IN (SELECT sample_id FROM overrides)"
        )
        forgotten += pass_over(connection, "carried", manifest, "the round before")
        add_fitting(connection, "carried", manifest)
    return forgotten


def read_file(
    connection: duckdb.DuckDBPyConnection, table: str, path: Path, classes: tuple[str, ...], strict: bool = True
) -> None:
    """Makes a table of a CSV or Parquet file. Unless `strict`, an unknown label is kept as -1."""
    rows, meaning = read_rows(connection, path), meanings(classes)
    unknown = sorted({str(label) for _, label in rows if label not in meaning})
    if unknown and strict:
        hints = "".join(f"\n  '{name}':{nearest(name, [*classes, REJECT])}" for name in unknown[:SHOWN])
        raise DataError(f"{path} has {len(unknown)} unknown labels; expected a class name or '{REJECT}'.{hints}")
    said: dict[str, str] = {}
    contradicted = {sample for sample, label in rows if said.setdefault(sample, label) != label}
    if contradicted:
        raise DataError(f"{path} says two things of {listed(sorted(contradicted))}; keep one row for each sample")
    digest = digest_file(path)
    people = pa.table(
        {
            "sample_id": pa.array(said, pa.string()),
            "label": pa.array([meaning.get(label, -1) for label in said.values()], pa.int32()),
            "origin": pa.array([digest] * len(said), pa.string()),
        }
    )
    connection.register("said_by_people", people)
    connection.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM said_by_people")
    connection.unregister("said_by_people")


def meanings(classes: tuple[str, ...]) -> dict[str, int | None]:
    """What may be said, and the class that it means; a class called `reject` takes precedence."""
    return {REJECT: None, **{name: number for number, name in enumerate(classes)}}


def read_rows(connection: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[str, str]]:
    """(sample_id, label) as text."""
    if not path.is_file():
        raise DataError(f"select.overrides: {path} does not exist; expected a CSV or Parquet file")
    source = (
        read_parquet(path)
        if path.suffix in (".parquet", ".pq")
        else f"read_csv({literal(path)}, header = true, all_varchar = true, comment = '', hive_partitioning = false)"
    )
    try:
        columns = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
        if missing := {"sample_id", "label"} - set(columns):
            raise DataError(
                f"{path} has the columns {', '.join(columns)}; expected sample_id and label, "
                f"missing {', '.join(sorted(missing))}"
            )
        return connection.execute(
            f"SELECT sample_id::VARCHAR, trim(label::VARCHAR) FROM {source} WHERE sample_id IS NOT NULL"
        ).fetchall()
    except duckdb.Error as error:
        raise DataError(f"{path} cannot be read as a table of overrides: {str(error).splitlines()[0]}") from error


def check(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path, path: Path) -> None:
    """Refuses samples that cannot be corrected, all of them in one message."""
    if problems := misfits(connection, table, manifest):
        raise DataError(f"{path} names samples that cannot be corrected; remove these rows:{lines_of(problems)}")


def pass_over(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path, source: str) -> int:
    """How many corrections fit the data no more; they are logged, for whoever made them."""
    problems = misfits(connection, table, manifest)
    count = sum(number for _, number, _ in problems)
    if count:
        log.warning("%d corrections of %s fit the data no more, passed over:%s", count, source, lines_of(problems))
    return count


def add_fitting(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path) -> None:
    """What fits the data, and of which nothing was said yet, joins `overrides`."""
    judged = JUDGED.format(table=table, manifest=read_parquet(manifest))
    connection.execute(
        f"INSERT INTO overrides SELECT sample_id, label, origin FROM ({judged}) "
        "WHERE problem IS NULL AND sample_id NOT IN (SELECT sample_id FROM overrides)"
    )


def misfits(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path) -> list[tuple[str, int, list[str]]]:
    """Each problem, how many samples have it, and the first of them."""
    judged = JUDGED.format(table=table, manifest=read_parquet(manifest))
    return connection.execute(
        f"SELECT problem, count(*), list(sample_id ORDER BY sample_id)[:{SHOWN}] FROM ({judged}) "
        "WHERE problem IS NOT NULL GROUP BY problem ORDER BY problem"
    ).fetchall()


def lines_of(problems: list[tuple[str, int, list[str]]]) -> str:
    """One line for each problem."""
    return "".join(f"\n  {problem}: {listed(samples, count)}" for problem, count, samples in problems)


def listed(samples: list[str], count: int | None = None) -> str:
    """The first few names, and how many there are."""
    count = len(samples) if count is None else count
    more = f" … ({count} in all)" if count > min(SHOWN, len(samples)) else ""
    return ", ".join(samples[:SHOWN]) + more
