"""Builds the parser that each verb extends, and prints SQL results within limits of rows, time and memory."""

import argparse
import contextlib
import os
import re
import resource
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from selftrain.ssl_tasks.errors import nearest
from selftrain.ssl_tasks.execution.startup import is_own_process

if TYPE_CHECKING:
    import pyarrow as pa

    from selftrain.ssl_tasks.pseudo_labels.views import Answer, RunTables


Verb = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest verb when a verb is mistyped."""

    def verbs(self) -> "dict[str, argparse.ArgumentParser]":
        """Returns the parser of each verb, in the order of --help; empty for a verb's own parser."""
        found = [dict(one.choices) for one in self._actions if isinstance(one, argparse._SubParsersAction)]
        return found[0] if found else {}

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument VERB: invalid choice: '?(.*?)'? \(choose from", message, re.DOTALL):
            tail = nearest(found[1][:100], self.verbs())
            self.exit(2, f"{self.prog}: no verb '{found[1][:100]}'.{tail} `{self.prog} --help` lists all verbs.\n")
        super().error(message)


class Version(argparse.Action):
    """The option `--version`, which looks the version up only when it is used."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version of selftrain and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(parser.prog, version("selftrain"))
        parser.exit()


class Formatter(argparse.HelpFormatter):
    """Wraps a text of one line; keeps the lines of a text that has several."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "\n".join(indent + line for line in text.splitlines())


# Texts that the options of several verbs share.
RUN = "id, unique prefix or name of a run, or 'last'"
SET = "override a setting of the recipe, such as rounds.1.select.threshold=0.9; can be repeated"
JSON = "print one JSON object instead of a table"
EXIT_CODES = "0 done · 2 invalid input · 3 failed · 130 interrupted"
STAGE_CODES = "0 done · 2 invalid input · 3 a stage failed · 130 interrupted (run it again to resume)"


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Adds `--workspace`, which is accepted before and after the verb; an absent one must not hide the other."""
    words = "folder of the store, the runs and the tracking (default: SELFTRAIN_HOME, else ./.selftrain)"
    parser.add_argument("--workspace", metavar="DIR", default=argparse.SUPPRESS, help=words)


class Verbs:
    """Collects the verbs; `verbs.add("status", function, "Show a run.", …)` returns the parser of one."""

    def __init__(self, parsers: "argparse._SubParsersAction[Parser]") -> None:
        self.parsers = parsers
        self.help_lines: dict[str, str] = {}

    def add(
        self, name: str, function: Verb, help_line: str, *examples: tuple[str, str], exit_codes: str = EXIT_CODES
    ) -> argparse.ArgumentParser:
        """Adds one verb. `help_line` is an imperative sentence; each example is a command line and its effect."""
        self.help_lines[name] = help_line
        shown = [f"  # {effect}\n  selftrain {words}" for words, effect in examples]
        epilog = "\n".join(["examples:", *shown, "", f"exit codes: {exit_codes}"])
        parser = self.parsers.add_parser(name, description=help_line, epilog=epilog, formatter_class=Formatter)
        parser.set_defaults(verb=function)
        add_workspace(parser)
        return parser


LEEWAY_GB = 3.0  # memory of the process in addition to the query's own
LEEWAY_SECONDS = 10.0  # time for a query to stop by itself; a function of one huge value does not


def show_answer(tables: "RunTables", options: Namespace, most_rows: int) -> None:
    """Shows the result of a query as the options say: a table of at most `most_rows` rows, or a file."""
    from selftrain.ssl_tasks.pseudo_labels.views import Answer, open_answer

    timeout = options.timeout or None
    to_file = options.csv or options.json or options.parquet
    with _memory_limit(), _ended_by_force(timeout), open_answer(tables, options.query, timeout=timeout) as whole:
        first = _First(whole.batches, options.limit if to_file else most_rows)
        _write(Answer(whole.schema, iter(first)), options)
    if first.more:
        print(f"the first {first.most:,} rows are shown. More: --limit N. All: --csv FILE", file=sys.stderr)


@dataclass
class _First:
    """Iterates over the first rows of batches, and notes whether there are more."""

    batches: "Iterator[pa.RecordBatch]"
    most: int | None
    more: bool = False

    def __iter__(self) -> "Iterator[pa.RecordBatch]":
        left = self.most
        for batch in self.batches:
            if left is not None and batch.num_rows > left:
                self.more = True
                batch = batch.slice(0, left)
            if batch.num_rows:
                yield batch
            if self.more:
                return
            left = None if left is None else left - batch.num_rows


def _write(answer: "Answer", options: Namespace) -> None:
    import pandas as pd

    from selftrain.flows.cli.labelling import print_frame
    from selftrain.ssl_tasks.pseudo_labels.views import (
        appearing_whole,
        frames,
        write_csv,
        write_json,
        write_parquet,
    )

    for path, write in ((options.csv, write_csv), (options.json, write_json)):
        if path is None:
            continue
        if str(path) == "-":
            write(answer, sys.stdout)
            return
        with appearing_whole(path) as place, place.open("w", newline="", encoding="utf-8") as file:
            rows = write(answer, file)
        return _say_written(path, rows)
    if options.parquet:
        with appearing_whole(options.parquet) as place:
            rows = write_parquet(answer, place)
        return _say_written(options.parquet, rows)
    return print_frame(pd.concat(list(frames(answer)), ignore_index=True))


def _say_written(path: Path, rows: int) -> None:
    print(f"wrote {path}: {rows:,} rows", file=sys.stderr)


@contextlib.contextmanager
def _memory_limit() -> Iterator[None]:
    """Limits the memory of the process, because DuckDB counts neither values made by functions nor Arrow's batches."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:  # not Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = used + int((1.0 + LEEWAY_GB) * 2**30)
    lower = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (lower, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextlib.contextmanager
def _ended_by_force(timeout: float | None) -> Iterator[None]:
    """Ends the command if a query does not stop at its time limit."""

    def end() -> None:
        print(
            f"selftrain: the query took longer than {timeout:g} s and was ended. Allow more: --timeout SECONDS",
            file=sys.stderr,
        )
        os._exit(3)

    if timeout is None or not is_own_process():
        yield
        return
    timer = threading.Timer(timeout + LEEWAY_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
