"""Corrections of single samples: a label, or `reject`. They win over the model and are carried to later rounds."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from selftrain.ssl_tasks.errors import DataError, brief, one_line
from selftrain.ssl_tasks.pseudo_labels.looking.engine import read_parquet
from selftrain.ssl_tasks.pseudo_labels.selecting.label_words import NO_CLASS, REJECT, LabelWords, UnknownLabel
from selftrain.ssl_tasks.store.artifacts import digest_file
from selftrain.ssl_tasks.store.csv_text import read_csv

log = logging.getLogger(__name__)
SHOWN = 10  # samples named in a message
NEEDED, OPTIONAL = ("sample_id", "label"), ("content",)
Misfit = tuple[str, int, list[str]]  # why corrections cannot be used, how many these are, and the first samples
TABLE = "CREATE TEMP TABLE {name} (sample_id VARCHAR, label INTEGER, origin VARCHAR)"  # label null: reject

JUDGED = """
    SELECT o.sample_id, o.label, o.origin, CASE
        WHEN m.sample_id IS NULL THEN 'not in the data'
        WHEN e.reason = 'labeled' THEN 'labelled already: correct it in the source'
        WHEN e.reason IS NOT NULL THEN 'of validation or test, or the same image as one of these'
        WHEN m.error IS NOT NULL THEN 'unreadable: ' || m.error
        WHEN o.unknown IS NOT NULL THEN o.unknown
        WHEN o.content <> m.content THEN 'the image has changed since a person labelled it'
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
) -> list[Misfit]:
    """Table `overrides`: the workspace's corrections, then the recipe's file, then what earlier rounds carried.

    The recipe's file must fit the data. Of the others, what does not fit any more is not used, and is returned.
    """
    connection.execute(TABLE.format(name="overrides"))
    unused: list[Misfit] = []
    if corrections is not None:
        read_file(connection, "applied", corrections, classes, strict=False)
        unused += pass_over(connection, "applied", manifest, str(corrections))
        add_fitting(connection, "applied", manifest)
    if path is not None:
        read_file(connection, "given", path, classes)
        check(connection, "given", manifest, path)
        add_fitting(connection, "given", manifest)
    if carried is not None:
        connection.execute(
            "CREATE TEMP TABLE carried AS SELECT sample_id, label, origin, NULL::VARCHAR AS content, "
            f"NULL::VARCHAR AS unknown FROM {read_parquet(carried)} "
            "WHERE sample_id NOT IN (SELECT sample_id FROM overrides)"
        )
        unused += pass_over(connection, "carried", manifest, "the round before")
        add_fitting(connection, "carried", manifest)
    return unused


def read_file(
    connection: duckdb.DuckDBPyConnection, table: str, path: Path, classes: tuple[str, ...], strict: bool = True
) -> None:
    """Makes a table of a CSV or Parquet file. Unless `strict`, a label without a meaning is kept, with a problem."""
    said = people_say(connection, path, classes)
    if strict and (unknown := {one.text: one.problem for one in said.values() if one.problem}):
        raise DataError(unknown_labels(path, unknown, classes))
    digest = digest_file(path)
    people = pa.table(
        {
            "sample_id": pa.array(said, pa.string()),
            "label": pa.array([one.label for one in said.values()], pa.int32()),
            "origin": pa.array([digest] * len(said), pa.string()),
            "content": pa.array([one.content or None for one in said.values()], pa.string()),
            "unknown": pa.array([one.problem or None for one in said.values()], pa.string()),
        }
    )
    connection.register("said_by_people", people)
    connection.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM said_by_people")
    connection.unregister("said_by_people")


@dataclass(frozen=True)
class Said:
    """One row of a file of corrections."""

    text: str  # the label as it is written
    label: int | None  # the class; None: a rejection, or a label without a meaning
    problem: str = ""  # why the label has no meaning
    content: str = ""  # digest of the image that the person saw; empty where the file does not say


def people_say(connection: duckdb.DuckDBPyConnection, path: Path, classes: tuple[str, ...]) -> dict[str, Said]:
    """The correction of each sample in a file. Refuses rows without an id or a label, and two labels for one sample."""
    words, said = LabelWords(classes), dict[str, Said]()
    contradicted: dict[str, None] = {}
    incomplete: dict[str, int] = {}
    for sample, text, content in read_rows(connection, path):
        if not sample or not text.strip():
            missing = "sample_id" if not sample else "label"
            incomplete[missing] = incomplete.get(missing, 0) + 1
            continue
        try:
            one = Said(text, words.meaning(text), content=content)
        except UnknownLabel as error:
            one = Said(text, None, str(error), content)
        before = said.setdefault(sample, one)
        if (before.label, before.problem) != (one.label, one.problem) or (one.problem and before.text != one.text):
            contradicted[sample] = None
    for missing, count in incomplete.items():
        raise DataError(f"{path} has {count} rows without a {missing}; expected both on every row, or no row")
    if contradicted:
        raise DataError(f"{path} says two things of {brief([*contradicted])}; keep one row for each sample")
    return said


def unknown_labels(path: Path, unknown: dict[str, str], classes: tuple[str, ...]) -> str:
    """The message about labels that mean nothing: each with what is wrong, and the nearest class."""
    lines = []
    for text, problem in sorted(unknown.items())[:SHOWN]:
        close = difflib.get_close_matches(text.strip(), [*classes, REJECT], n=1) if problem == NO_CLASS else []
        hint = f"Did you mean '{one_line(close[0])}'?" if close else problem
        lines.append(f"\n  '{one_line(text)}': {hint}")
    more = f"\n  … and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    return (
        f"{path} has {len(unknown)} unknown labels; expected '{LabelWords(classes).written(None)}' or a class: "
        f"{brief(classes)}.{''.join(lines)}{more}"
    )


def read_rows(connection: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[str, ...]]:
    """(sample_id, label, content) as text, '' where there is none."""
    if not path.is_file():
        raise DataError(f"select.overrides: {path} does not exist; expected a CSV or Parquet file")
    if path.suffix not in (".parquet", ".pq"):
        return read_csv(path, NEEDED, OPTIONAL)
    source = read_parquet(path)
    try:
        columns = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
        if missing := [name for name in NEEDED if name not in columns]:
            raise DataError(
                f"{path} has the columns {brief(columns)}; expected sample_id and label, missing {', '.join(missing)}"
            )
        wanted = [name if name in columns else "''" for name in (*NEEDED, *OPTIONAL)]
        texts = ", ".join(f"coalesce({name}::VARCHAR, '')" for name in wanted)
        return connection.execute(f"SELECT {texts} FROM {source}").fetchall()
    except duckdb.Error as error:
        raise DataError(
            f"{path} cannot be read as a table of overrides: {one_line(str(error).splitlines()[0], 200)}"
        ) from error


def check(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path, path: Path) -> None:
    """Refuses samples that cannot be corrected, all of them in one message."""
    if problems := misfits(connection, table, manifest):
        raise DataError(f"{path} names samples that cannot be corrected; remove these rows:{lines_of(problems)}")


def pass_over(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path, source: str) -> list[Misfit]:
    """The corrections that do not fit the data any more; the log says so, too."""
    problems = misfits(connection, table, manifest)
    if problems:
        count, lines = count_of(problems), lines_of(problems)
        log.warning("%d corrections of %s do not fit the data any more and are not used:%s", count, source, lines)
    return problems


def add_fitting(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path) -> None:
    """Add to `overrides` the corrections that fit the data, of samples that have none yet."""
    judged = JUDGED.format(table=table, manifest=read_parquet(manifest))
    connection.execute(
        f"INSERT INTO overrides SELECT sample_id, label, origin FROM ({judged}) "
        "WHERE problem IS NULL AND sample_id NOT IN (SELECT sample_id FROM overrides)"
    )


def misfits(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path) -> list[Misfit]:
    """Each problem, how many samples have it, and the first of them."""
    judged = JUDGED.format(table=table, manifest=read_parquet(manifest))
    return connection.execute(
        f"SELECT problem, count(*), list(sample_id ORDER BY sample_id)[:{SHOWN}] FROM ({judged}) "
        "WHERE problem IS NOT NULL GROUP BY problem ORDER BY problem"
    ).fetchall()


def count_of(problems: list[Misfit]) -> int:
    """How many corrections have a problem."""
    return sum(number for _, number, _ in problems)


def lines_of(problems: list[Misfit]) -> str:
    """One line for each problem."""
    return "".join(f"\n  {sentence}" for sentence in sentences_of(problems))


def sentences_of(problems: list[Misfit]) -> list[str]:
    """Each problem with the first samples that have it."""
    return [
        f"{one_line(problem, 200)}: {brief(samples)}" + (f" … ({count} in all)" if count > len(samples) else "")
        for problem, count, samples in problems
    ]
