"""The answer to `selftrain sql` on a terminal or in a file, within limits of rows, time and memory."""

import contextlib
import os
import resource
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.ssl_tasks.execution.startup import is_own_process

if TYPE_CHECKING:
    import pyarrow as pa

    from selftrain.ssl_tasks.pseudo_labels.looking.views import Answer, RunTables

LEEWAY_GB = 3.0  # for the process beside the query's own memory
LEEWAY_SECONDS = 10.0  # for a query to notice that its time is over: a function of one huge value does not


def show_answer(tables: "RunTables", options: Namespace, most_rows: int) -> None:
    """The answer to a query where the options want it: a table of at most `most_rows` rows, or a file."""
    from selftrain.ssl_tasks.pseudo_labels.looking.views import Answer, open_answer

    timeout = options.timeout or None
    to_file = options.csv or options.json or options.parquet
    with _memory_limit(), _ended_by_force(timeout), open_answer(tables, options.query, timeout=timeout) as whole:
        first = _First(whole.batches, options.limit if to_file else most_rows)
        _write(Answer(whole.schema, iter(first)), options)
    if first.more:
        print(f"the first {first.most:,} rows; there are more: --limit N shows more, --csv FILE all", file=sys.stderr)


@dataclass
class _First:
    """The first rows of batches, and whether there are more."""

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
    from selftrain.ssl_tasks.pseudo_labels.looking.answers import (
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
    """A limit for the process: DuckDB does not count the values that a function makes, nor Arrow its batches."""
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
    """Ends the command where a query does not notice that its time is over."""

    def end() -> None:
        print(f"selftrain: the query took longer than {timeout:g} s and did not stop; ended", file=sys.stderr)
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
