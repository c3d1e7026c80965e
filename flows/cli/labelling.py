"""Defines the verbs that show and correct pseudo-labels: labels (list, diff, review, apply) and sql."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.flows.actions import looking
from selftrain.flows.cli.verb import RUN, Verbs
from selftrain.flows.environment import workspace_folder
from selftrain.flows.tables import counted, print_table, printable_lines
from selftrain.ssl_tasks.errors import ConfigError, nearest
from selftrain.ssl_tasks.store.runs import find_run

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 1000  # of a query's result on a terminal
MOST_LETTERS = 2000  # of a cell on a terminal
MOST_SECONDS = 10_000_000  # `threading.Timer` accepts little more
ACTIONS = ("diff", "review", "apply")


def add_labels(verbs: Verbs) -> None:
    verb = verbs.add(
        "labels",
        _labels,
        "List, compare, review and correct the pseudo-labels of a run.",
        (
            "labels last --selected --sort confidence --limit 5",
            "the 5 least confident pseudo-labels that were accepted",
        ),
        ("labels review last --csv review.csv", "the images most worth a look, for a person to correct"),
    )
    verb.usage = (
        "selftrain labels RUN [filters]            one row per image\n"
        "       selftrain labels diff RUN A B             images that differ between rounds A and B\n"
        "       selftrain labels review RUN               images most worth a look, the most useful first\n"
        "       selftrain labels apply RUN FILE.csv       use your corrections in all later rounds and runs; FILE.csv\n"
        "                                                 needs the columns sample_id and label, others are ignored"
    )
    words = f"the action (default: list), then the run: {RUN}"
    verb.add_argument("words", nargs="*", metavar="[diff|review|apply] RUN …", help=words)
    verb.add_argument("--round", type=int, metavar="N", help="round number, from 1 (default: the last)")
    verb.add_argument("--class", dest="class_name", metavar="NAME", help="only images with this pseudo-label")
    words = "only pseudo-labels that the selection accepted (default: accepted and rejected)"
    verb.add_argument("--selected", action="store_true", default=None, help=words)
    words = "only pseudo-labels that the selection rejected"
    verb.add_argument("--not-selected", dest="selected", action="store_false", help=words)
    words = "only images whose predicted class changed since the previous round"
    verb.add_argument("--flipped", action="store_true", default=None, help=words)
    words = "only pseudo-labels with at least this confidence, from 0 to 1"
    verb.add_argument("--min-confidence", type=float, metavar="P", help=words)
    words = "confidence, margin, agreement or distance; a leading - sorts in descending order (default: -confidence)"
    verb.add_argument("--sort", default="-confidence", metavar="COLUMN", help=words)
    verb.add_argument("--limit", type=int, default=50, metavar="N", help="show at most N rows (default: 50)")
    add_outputs(verb)


def add_sql(verbs: Verbs) -> None:
    verb = verbs.add(
        "sql",
        _sql,
        "Query the images, predictions and selections of a run with SQL (DuckDB). "
        "The views manifest, predictions, selection and rounds cover all rounds.",
        ('sql last "select round, count(*) from selection group by round"', "accepted pseudo-labels by round"),
        ('sql last "from predictions" --parquet all.parquet', "all predictions as a Parquet file"),
        exit_codes="0 done · 2 invalid input · 3 the query failed or took too long · 130 interrupted",
    )
    verb.add_argument("run", metavar="RUN", help=RUN)
    verb.add_argument("query", metavar="QUERY", help="one read-only SQL query, in quotes")
    words = f"write at most N rows (default: all; {MOST_ROWS:,} on a terminal)"
    verb.add_argument("--limit", type=int, metavar="N", help=words)
    words = f"stop the query after SECONDS; 0 sets no limit (default: {looking.TIMEOUT:g})"
    verb.add_argument("--timeout", type=float, metavar="SECONDS", default=looking.TIMEOUT, help=words)
    add_outputs(verb)


def add_outputs(verb: ArgumentParser) -> None:
    """Adds the options that write a table into a file."""
    for kind, name in (("csv", "CSV"), ("json", "JSON"), ("parquet", "Parquet")):
        stdout = "" if kind == "parquet" else "; - is stdout"
        words = f"write {name} to FILE instead of a table on the terminal{stdout}"
        verb.add_argument(f"--{kind}", metavar="FILE", type=Path, help=words)


def _labels(options: Namespace) -> None:
    if options.limit < 1:
        raise ConfigError(f"--limit is {options.limit}; expected at least 1")
    action, words = _split(options.words)
    if len(words) > 1 and action in ("show", "review"):
        found = " ".join(options.words)
        raise ConfigError(
            f"labels: found '{found}'; expected one run, as in: selftrain labels last."
            + nearest(options.words[0], ACTIONS)
        )
    run = words[0] if words else "last"
    if action == "apply":
        _apply(words, options)
    elif action == "diff":
        _diff(words, options)
    elif action == "review":
        show_frame(looking.review(run, options.round, options.limit, options.workspace), options)
    else:
        names = ("round", "class_name", "selected", "flipped", "min_confidence", "sort", "limit", "workspace")
        show_frame(looking.labels(run, **{name: getattr(options, name) for name in names}), options)


def _split(words: list[str]) -> tuple[str, list[str]]:
    return (words[0], words[1:]) if words and words[0] in ACTIONS else ("show", words)


def _diff(words: list[str], options: Namespace) -> None:
    if len(words) != 3 or not all(word.isdigit() for word in words[1:]):
        raise ConfigError("labels diff: expected a run and two round numbers, as in: selftrain labels diff last 1 2")
    found = looking.differences(words[0], int(words[1]), int(words[2]), options.workspace)
    whole = bool(options.csv or options.json or options.parquet)
    show_frame(found if whole else found.head(options.limit), options)
    if not whole and len(found) > options.limit:
        print(f"{options.limit} of {len(found):,} images are shown. More: --limit N. All: --csv FILE", file=sys.stderr)


def _apply(words: list[str], options: Namespace) -> None:
    if len(words) != 2:
        raise ConfigError("labels apply: expected a run and a file, as in: selftrain labels apply last fixed.csv")
    applied = looking.apply_corrections(words[0], words[1], options.workspace)
    from selftrain.ssl_tasks.pseudo_labels.corrections import count_of, lines_of

    name = find_run(workspace_folder(options.workspace), words[0]).config.name
    print(
        f"{counted(applied.in_force, 'correction')} in force for '{name}' ({applied.new} new, "
        f"{applied.changed} changed). "
        f"Use them: selftrain rerun {words[0]}, or approve the round that waits: selftrain approve {words[0]}"
    )
    if applied.misfits:
        count, lines = count_of(applied.misfits), printable_lines(lines_of(applied.misfits))
        print(f"{counted(count, 'earlier correction')} ignored, because the data has changed:{lines}", file=sys.stderr)


def _sql(options: Namespace) -> None:
    from selftrain.flows.cli.verb import show_answer

    if not isinstance(options.query, str):  # argparse makes a list of the word `--`
        raise ConfigError('sql: found no query; expected one, for example "select count(*) from selection"')
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit is {options.limit}; expected at least 1")
    if not 0 <= options.timeout <= MOST_SECONDS:
        raise ConfigError(f"--timeout is {options.timeout:g}; expected seconds from 0 (no limit) to {MOST_SECONDS:,}")
    check_writable(options.csv, options.json, options.parquet)
    tables = looking.tables_of(find_run(workspace_folder(options.workspace), options.run))
    show_answer(tables, options, options.limit or MOST_ROWS)


def show_frame(frame: "pd.DataFrame", options: Namespace) -> None:
    """Shows a data frame as the options say: as a table on the terminal, or in a file."""
    check_writable(options.csv, options.json, options.parquet)
    if options.csv:
        _write_csv(frame, options.csv)
    elif options.json:
        text = frame.to_json(orient="records", default_handler=str)
        print(text) if str(options.json) == "-" else options.json.write_text(text)
    elif options.parquet:
        frame.to_parquet(options.parquet, index=False)
    else:
        print_frame(frame)
    written = [path for path in (options.csv, options.json, options.parquet) if path and str(path) != "-"]
    if written:
        print(f"wrote {written[0]}: {len(frame):,} rows", file=sys.stderr)


def _write_csv(frame: "pd.DataFrame", path: Path) -> None:
    from selftrain.ssl_tasks.store.csv_text import write_frame

    if str(path) == "-":
        write_frame(frame, sys.stdout)
        return
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:  # a path may not be UTF-8
        write_frame(frame, file)


def check_writable(*paths: Path | None) -> None:
    """Raises ConfigError if a file to be written is a folder, or its folder does not exist."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(
                f"cannot write {path}: {path.absolute().parent} is not a folder; expected an existing one"
            )
        if path is not None and path.is_dir():
            raise ConfigError(f"cannot write {path}: it is a folder; expected the name of a file")


def print_frame(frame: "pd.DataFrame") -> None:
    """Prints a data frame as a table, without its empty columns."""
    shown = frame.dropna(axis="columns", how="all")
    if {"uri", "sample_id"} <= set(shown.columns) and shown["uri"].equals(shown["sample_id"]):
        shown = shown.drop(columns="uri")  # both columns say the same; a file keeps both
    numbers = [name for name in shown.columns if shown[name].dtype.kind in "iuf"]
    rows = [{name: _cell(value) for name, value in row.items()} for row in shown.to_dict("records")]
    print_table([{str(name): value for name, value in row.items()} for row in rows], right=numbers)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    text = str(value)
    if value is None or text in ("<NA>", "NaT"):
        return ""
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"
