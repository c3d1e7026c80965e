"""What people say of single samples: a label, or `reject`. It wins over the model, and is carried to later rounds."""

from pathlib import Path

import duckdb
import pyarrow as pa

from ssl_tasks.artifacts import digest_file
from ssl_tasks.errors import DataError, nearest
from ssl_tasks.pseudo_labels.engine import fetch_number, literal, read_parquet

REJECT = "reject"
SHOWN = 10  # samples named in a message
TABLE = "CREATE TEMP TABLE {name} (sample_id VARCHAR, label INTEGER, origin VARCHAR)"  # label null: reject

JUDGED = """
    SELECT o.sample_id, o.label, o.origin, CASE
        WHEN m.sample_id IS NULL THEN 'not in the data'
        WHEN e.reason = 'labeled' THEN 'labelled already: correct it in the source'
        WHEN e.reason IS NOT NULL THEN 'of validation or test, or the same image as one of these'
        WHEN m.error IS NOT NULL THEN 'unreadable: ' || m.error
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
) -> int:
    """Table `overrides`: the file's, then earlier rounds'. Returns how many of the latter fit the data no more."""
    connection.execute(TABLE.format(name="overrides"))
    connection.execute(TABLE.format(name="carried"))
    if path is not None:
        read_file(connection, path, classes)
        check(connection, manifest, path)
    if carried is None:
        return 0
    connection.execute(
        f"INSERT INTO carried SELECT sample_id, label, origin FROM {read_parquet(carried)} "
        "WHERE sample_id NOT IN (SELECT sample_id FROM overrides)"
    )
    judged = f"({JUDGED.format(table='carried', manifest=read_parquet(manifest))})"
    connection.execute(f"INSERT INTO overrides SELECT sample_id, label, origin FROM {judged} WHERE problem IS NULL")
    return fetch_number(connection, f"SELECT count(*) FROM {judged} WHERE problem IS NOT NULL")


def read_file(connection: duckdb.DuckDBPyConnection, path: Path, classes: tuple[str, ...]) -> None:
    """Fills table `overrides` from a CSV or Parquet file."""
    rows, meaning = read_rows(connection, path), meanings(classes)
    unknown = sorted({str(label) for _, label in rows if label not in meaning})
    if unknown:
        hints = "".join(f"\n  '{name}':{nearest(name, [*classes, REJECT])}" for name in unknown[:SHOWN])
        raise DataError(f"{path} has {len(unknown)} unknown labels; expected a class name or '{REJECT}'.{hints}")
    said: dict[str, str] = {}
    contradicted = {sample for sample, label in rows if said.setdefault(sample, label) != label}
    if contradicted:
        raise DataError(f"{path} says two things of {listed(sorted(contradicted))}; keep one row for each sample")
    digest = digest_file(path)
    table = pa.table(
        {
            "sample_id": pa.array(said, pa.string()),
            "label": pa.array([meaning[label] for label in said.values()], pa.int32()),
            "origin": pa.array([digest] * len(said), pa.string()),
        }
    )
    connection.register("said_by_people", table)
    connection.execute("INSERT INTO overrides SELECT * FROM said_by_people")
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
        else f"read_csv({literal(path)}, header = true, all_varchar = true)"
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


def check(connection: duckdb.DuckDBPyConnection, manifest: Path, path: Path) -> None:
    """Refuses samples that cannot be corrected, all of them in one message."""
    judged = JUDGED.format(table="overrides", manifest=read_parquet(manifest))
    problems = connection.execute(
        f"SELECT problem, count(*), list(sample_id ORDER BY sample_id)[:{SHOWN}] FROM ({judged}) "
        "WHERE problem IS NOT NULL GROUP BY problem ORDER BY problem"
    ).fetchall()
    if problems:
        lines = "".join(f"\n  {problem}: {listed(samples, count)}" for problem, count, samples in problems)
        raise DataError(f"{path} names samples that cannot be corrected; remove these rows:{lines}")


def listed(samples: list[str], count: int | None = None) -> str:
    """The first few names, and how many there are."""
    count = len(samples) if count is None else count
    more = f" … ({count} in all)" if count > min(SHOWN, len(samples)) else ""
    return ", ".join(samples[:SHOWN]) + more
