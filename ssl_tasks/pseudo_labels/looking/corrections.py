"""Files of corrections: validated against the data before any run meets them, merged, and counted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from selftrain.ssl_tasks.pseudo_labels.looking.engine import fetch_number, open_spilling, read_parquet
from selftrain.ssl_tasks.pseudo_labels.selecting.candidates import define_excluded
from selftrain.ssl_tasks.pseudo_labels.selecting.label_words import LabelWords
from selftrain.ssl_tasks.pseudo_labels.selecting.overrides import (
    NEEDED,
    OPTIONAL,
    Misfit,
    Said,
    define_overrides,
    people_say,
)
from selftrain.ssl_tasks.store.artifacts import Artifact, write_atomically
from selftrain.ssl_tasks.store.csv_text import csv_text


@dataclass(frozen=True)
class Applied:
    """The outcome of applying a file of corrections, and the number in force now."""

    in_force: int  # corrections that the next selection of this data uses
    new: int  # of the file that was applied
    changed: int
    misfits: list[Misfit]  # what is kept and does not fit this data


def add_corrections(kept: Path, given: Path, dataset: Artifact) -> Applied:
    """Adds a file's corrections to those that are kept. DataError, and nothing is written, where a row cannot be used.

    With each goes the digest of the image that it was made for: if the image changes, the correction no longer counts.
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
