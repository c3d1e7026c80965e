"""A file of people's corrections, validated against the data before any run meets it."""

import json
from pathlib import Path

from ssl_tasks.artifacts import Artifact
from ssl_tasks.pseudo_labels.candidates import define_excluded
from ssl_tasks.pseudo_labels.engine import open_spilling
from ssl_tasks.pseudo_labels.overrides import REJECT, define_overrides


def validated_rows(path: Path, dataset: Artifact) -> dict[str, str]:
    """{sample id: class name or `reject`}; DataError naming every row that the next selection would refuse."""
    classes = tuple(json.loads(dataset.file("info.json").read_text())["classes"])
    manifest = dataset.file("manifest.parquet")
    with open_spilling() as connection:
        define_excluded(connection, manifest)
        define_overrides(connection, path, None, manifest, classes)
        rows = connection.execute("SELECT sample_id, label FROM overrides ORDER BY sample_id").fetchall()
    return {sample: REJECT if label is None else classes[label] for sample, label in rows}
