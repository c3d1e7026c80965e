"""Reads and merges corrections by people: a label for one sample, or `reject`.

Corrections override the model and carry over to later rounds. A file of corrections is checked against the data before
a run uses it, merged with earlier ones, and counted.
"""

import difflib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from selftrain.ssl_tasks.errors import DataError, brief, one_line
from selftrain.ssl_tasks.pseudo_labels.candidates import define_excluded
from selftrain.ssl_tasks.pseudo_labels.engine import fetch_number, open_spilling, read_parquet
from selftrain.ssl_tasks.store.artifacts import Artifact, digest_file, write_atomically
from selftrain.ssl_tasks.store.csv_text import csv_text, read_csv

REJECT = "reject"  # no label is to be learned for this image; refused if a class has this name
ALWAYS_REJECT = "(reject)"  # the same, whatever the names of the classes
CLASS = "class:"  # before a class's name: this class, even if its name is "reject"
NO_CLASS = "no such class"


class UnknownLabel(ValueError):
    """A label that means no class, or that could mean two things."""


class LabelWords:
    """The words for the classes of one data set."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.numbers = {name: number for number, name in enumerate(classes)}
        names = Counter(name.strip() for name in classes)
        self.trimmed = {name.strip(): number for name, number in self.numbers.items() if names[name.strip()] == 1}
        self.ambiguous = REJECT in names

    def meaning(self, text: str) -> int | None:
        """Returns the number of the class, or None for a rejection; ignores blanks around a name if one class fits.

        Raises UnknownLabel if the text means neither.
        """
        word = text.strip()
        if text.lstrip().startswith(CLASS):
            name = text.lstrip().removeprefix(CLASS)
            if (found := self.numbers.get(name, self.trimmed.get(name.strip()))) is not None:
                return found
        if text in self.numbers and text not in (REJECT, ALWAYS_REJECT):
            return self.numbers[text]
        if word == ALWAYS_REJECT or (word == REJECT and not self.ambiguous):
            return None
        if word == REJECT:
            raise UnknownLabel(f"a class is called '{REJECT}': write {CLASS}{REJECT} for it, {ALWAYS_REJECT} for none")
        if word in self.trimmed:
            return self.trimmed[word]
        raise UnknownLabel(NO_CLASS)

    def written(self, meaning: int | None) -> str:
        """Returns the word for a class or for a rejection; `meaning` reads it back."""
        if meaning is None:
            return ALWAYS_REJECT if self.ambiguous else REJECT
        name = self.classes[meaning]
        return name if self._means(name, meaning) else CLASS + name

    def _means(self, text: str, meaning: int) -> bool:
        try:
            return self.meaning(text) == meaning
        except UnknownLabel:
            return False


log = logging.getLogger(__name__)
SHOWN = 10  # samples named in a message
NEEDED, OPTIONAL = ("sample_id", "label"), ("content",)
Misfit = tuple[str, int, list[str]]  # why corrections cannot be used, their number, and the first samples
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
    """Creates the table `overrides`: the workspace's corrections, the recipe's file, and those of earlier rounds.

    The first of these wins. The recipe's file must fit the data. Other corrections that no longer fit are not used, and
    are returned.
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
    """Reads a CSV or Parquet file into a table. Unless `strict`, a label without a meaning is kept, with a problem."""
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
    """Returns the correction of each sample; refuses rows without an id or a label, and two labels for one sample."""
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
    """Returns the message about labels without a meaning: each with its problem and the nearest class."""
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
    """Returns the rows (sample_id, label, content) as text; a missing value is ''."""
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
    """Raises one error that names all samples that cannot be corrected, if there are any."""
    if problems := misfits(connection, table, manifest):
        raise DataError(f"{path} names samples that cannot be corrected; remove these rows:{lines_of(problems)}")


def pass_over(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path, source: str) -> list[Misfit]:
    """Returns the corrections that no longer fit the data, and logs them."""
    problems = misfits(connection, table, manifest)
    if problems:
        count, lines = count_of(problems), lines_of(problems)
        log.warning("%d corrections of %s do not fit the data any more and are not used:%s", count, source, lines)
    return problems


def add_fitting(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path) -> None:
    """Adds to `overrides` the corrections that fit the data, for samples without a correction."""
    judged = JUDGED.format(table=table, manifest=read_parquet(manifest))
    connection.execute(
        f"INSERT INTO overrides SELECT sample_id, label, origin FROM ({judged}) "
        "WHERE problem IS NULL AND sample_id NOT IN (SELECT sample_id FROM overrides)"
    )


def misfits(connection: duckdb.DuckDBPyConnection, table: str, manifest: Path) -> list[Misfit]:
    """Returns each problem, the number of samples that have it, and the first of them."""
    judged = JUDGED.format(table=table, manifest=read_parquet(manifest))
    return connection.execute(
        f"SELECT problem, count(*), list(sample_id ORDER BY sample_id)[:{SHOWN}] FROM ({judged}) "
        "WHERE problem IS NOT NULL GROUP BY problem ORDER BY problem"
    ).fetchall()


def count_of(problems: list[Misfit]) -> int:
    """Counts the corrections with a problem."""
    return sum(number for _, number, _ in problems)


def lines_of(problems: list[Misfit]) -> str:
    """Returns one line for each problem."""
    return "".join(f"\n  {sentence}" for sentence in sentences_of(problems))


def sentences_of(problems: list[Misfit]) -> list[str]:
    """Returns each problem with the first samples that have it."""
    return [
        f"{one_line(problem, 200)}: {brief(samples)}" + (f" … ({count} in all)" if count > len(samples) else "")
        for problem, count, samples in problems
    ]


@dataclass(frozen=True)
class Applied:
    """The outcome of applying a file of corrections, and the number in force now."""

    in_force: int  # corrections that the next selection of this data uses
    new: int  # corrections of the file that was applied
    changed: int
    misfits: list[Misfit]  # corrections that are stored and do not fit this data


def add_corrections(kept: Path, given: Path, dataset: Artifact) -> Applied:
    """Adds a file's corrections to the stored ones. Raises DataError and writes nothing if a row cannot be used.

    Each is stored with the digest of its image: if the image changes, the correction no longer counts.
    """
    classes = tuple(json.loads(dataset.file("info.json").read_text())["classes"])
    words, manifest = LabelWords(classes), dataset.file("manifest.parquet")
    with _opened(manifest) as connection:
        before = people_say(connection, kept, classes) if kept.exists() else {}
        define_overrides(connection, given, None, manifest, classes)
        found = connection.execute(
            f"SELECT o.sample_id, o.label, coalesce(m.content, '') FROM overrides o JOIN {read_parquet(manifest)} m "
            "USING (sample_id)"
        ).fetchall()
    added = {sample: Said(words.written(label), label, content=content) for sample, label, content in found}
    rows = [(sample, said.text, said.content) for sample, said in sorted({**before, **added}.items())]
    write_atomically(kept, csv_text((*NEEDED, *OPTIONAL), rows))
    with _opened(manifest) as connection:  # read back as the selection reads it
        unmatched = define_overrides(connection, None, None, manifest, classes, kept)
        in_force = fetch_number(connection, "SELECT count(*) FROM overrides")
    old = [(before[sample], said) for sample, said in added.items() if sample in before]
    changed = sum((one.label, one.problem) != (said.label, said.problem) for one, said in old)
    return Applied(in_force, len(added) - len(old), changed, unmatched)


@contextmanager
def _opened(manifest: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_spilling() as connection:
        define_excluded(connection, manifest)
        yield connection
