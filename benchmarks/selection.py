"""Selecting among many pseudo-labels: time beside the bare top-k query and pandas, and peak memory.

python benchmarks/selection.py [--quick] [--rows 20000000 --rows 100000000]

1,000 classes in Zipf shares, equal balance, the k most confident of each class, hard labels. Every side runs in a
process of its own, the sides alternate. `select` is the whole stage: exclusion of held-out images by content, rules,
balance, statistics and output. `bare` is one window query of DuckDB with the same memory, written to Parquet.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import publish
from selftrain.ssl_tasks.execution.stage import StageContext
from selftrain.ssl_tasks.pseudo_labels.engine import literal, open_duckdb, write_parquet
from selftrain.ssl_tasks.pseudo_labels.schema import DESCRIPTION, SCHEMA_VERSION, VALIDATION
from selftrain.ssl_tasks.pseudo_labels.select import select
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

CLASSES, SHARD_ROWS, MEMORY_GB = 1000, 1_000_000, 1.25
LARGEST_FOR_PANDAS = 20_000_000
RATIO, PEAK_GB = 1.3, 2.0
PARTS = {"labeled": "l", "unlabeled": "u", "validation": "v", "test": "t"}

SHARD = """
    SELECT 'image-' || lpad(i::VARCHAR, 10, '0') AS sample_id,
        (floor(pow({classes} + 1, hash(i) / 18446744073709551616.0)) - 1)::INTEGER AS label,
        (1 - pow(hash(i, 1) / 18446744073709551616.0, 3))::FLOAT AS confidence, 0.5::FLOAT AS margin,
        0.5::FLOAT AS entropy, 1::FLOAT AS view_agreement, 0.5::FLOAT AS feature_distance,
        []::FLOAT[] AS probs, NULL::VARCHAR AS error
    FROM range({start}, {stop}) numbers(i)
"""
# 50,000 labelled and as many held-out images; one in a million unlabelled ones is the same image as a held-out one.
MANIFEST = """
    SELECT 'image-' || lpad(i::VARCHAR, 10, '0') AS sample_id, -1 AS label, 'unlabeled' AS split,
        md5(CASE i % 1000000 WHEN 7 THEN 'test-' || (i % 50000) ELSE i::VARCHAR END) AS content, NULL::VARCHAR AS error
    FROM range({rows}) numbers(i)
    UNION ALL
    SELECT split || '-' || i, (i % {classes})::INTEGER, split, md5(split || '-' || i), NULL
    FROM range(50000) numbers(i), (VALUES ('labeled'), ('test')) splits(split)
"""
BARE = """
    SELECT sample_id, label, confidence FROM read_parquet({files})
    QUALIFY row_number() OVER (PARTITION BY label ORDER BY confidence DESC, sample_id) <= {k}
"""


def generate(folder: Path, rows: int) -> None:
    """A data set's manifest and a teacher's predictions, drawn by DuckDB."""
    predictions, dataset = folder / "predictions", folder / "dataset"
    (predictions / "shards").mkdir(parents=True)
    dataset.mkdir()
    shards: list[dict[str, Any]] = []
    with open_duckdb(folder / "scratch", MEMORY_GB) as connection:
        for start in range(0, rows, SHARD_ROWS):
            stop, name = min(start + SHARD_ROWS, rows), f"part-{len(shards):05d}.parquet"
            query = SHARD.format(classes=CLASSES, start=start, stop=stop)
            write_parquet(connection, query, predictions / "shards" / name, group_rows=65_536)
            shards.append({"file": name, "rows": stop - start, "first": start})
        write_parquet(connection, MANIFEST.format(rows=rows, classes=CLASSES), dataset / "manifest.parquet")
        held_out = (
            "SELECT *, 0 AS truth, false AS fitted FROM (" + SHARD.format(classes=CLASSES, start=0, stop=1000) + ")"
        )
        write_parquet(connection, held_out, predictions / VALIDATION)
    description = {
        "schema": SCHEMA_VERSION,
        "classes": [f"class-{number}" for number in range(CLASSES)],
        "stored_classes": CLASSES,
        "parts": PARTS,
        "shards": shards,
    }
    (predictions / DESCRIPTION).write_text(json.dumps(description))


def select_side(folder: Path, k: int, threads: int) -> str:
    """The stage; returns the digest of what it selected."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        context = StageContext(
            section=SelectSettings(balance="equal", per_class=k, soft=False),
            inputs={
                "dataset": Artifact(folder / "dataset", {"parts": PARTS}),
                "predictions": Artifact(folder / "predictions", {}),
            },
            output=Path(place) / "output",
            scratch=Path(place) / "scratch",
            cache=Path(place) / "cache",
            runtime=RuntimeSettings(memory_gb=MEMORY_GB, threads=threads),
        )
        context.output.mkdir()
        select(context)
        with (context.output / "selection.parquet").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def bare_side(folder: Path, k: int, threads: int) -> str:
    """The query alone."""
    files = f"[{', '.join(literal(path) for path in shard_files(folder))}]"
    with tempfile.TemporaryDirectory(dir=folder) as place, open_duckdb(Path(place), MEMORY_GB, threads) as connection:
        write_parquet(connection, BARE.format(files=files, k=k), Path(place) / "bare.parquet")
    return ""


def pandas_side(folder: Path, k: int, threads: int) -> str:
    """The way without a database: sort everything, take the head of each group."""
    columns = ["sample_id", "label", "confidence"]
    table = pd.concat([pd.read_parquet(path, columns=columns) for path in shard_files(folder)])
    ordered = table.sort_values(["label", "confidence", "sample_id"], ascending=[True, False, True])
    ordered.groupby("label").head(k).to_parquet(folder / "pandas.parquet")
    return ""


def shard_files(folder: Path) -> list[Path]:
    return sorted((folder / "predictions" / "shards").glob("*.parquet"))


SIDES = {"select": select_side, "bare": bare_side, "pandas": pandas_side}


def run_side(side: str, folder: Path, k: int, threads: int) -> dict[str, Any]:
    """One side in a process of its own: seconds without imports, peak memory, digest of the result."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--folder",
        str(folder),
        "--k",
        str(k),
        "--threads",
        str(threads),
    ]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def measure(rows: int, k: int, repeats: int) -> list[dict[str, Any]]:
    """All sides at one size."""
    threads, sides = os.cpu_count() or 1, [side for side in SIDES if side != "pandas" or rows <= LARGEST_FOR_PANDAS]
    with tempfile.TemporaryDirectory(prefix="selftrain-selection-") as place:
        folder = Path(place)
        generate(folder, rows)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(repeats):
            for side in sides:
                runs[side].append(run_side(side, folder, k, threads))
        digests = {run["digest"] for run in runs["select"]} | {run_side("select", folder, k, 1)["digest"]}
    seconds = {side: statistics.median(run["seconds"] for run in found) for side, found in runs.items()}
    return [
        {
            "rows": rows,
            "side": side,
            "seconds": seconds[side],
            "to_bare": seconds[side] / seconds["bare"],
            "seconds_per_million": seconds[side] / rows * 1e6,
            "peak_gb": max(run["peak_gb"] for run in found),
            "same_bytes": len(digests) == 1 if side == "select" else None,
        }
        for side, found in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two million rows, 100 of a class")
    parser.add_argument("--rows", type=int, action="append", help="may be given several times")
    parser.add_argument("--k", type=int, default=1000, help="per class")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.side:
        started = time.monotonic()
        digest = SIDES[wanted.side](wanted.folder, wanted.k, wanted.threads)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": time.monotonic() - started, "peak_gb": peak, "digest": digest}))
        return
    sizes = wanted.rows or ([2_000_000] if wanted.quick else [20_000_000, 100_000_000])
    k = 100 if wanted.quick else wanted.k
    rows = [line for size in sizes for line in measure(size, k, 1 if wanted.quick else wanted.repeats)]
    ours = [row for row in rows if row["side"] == "select"]
    slowest, largest = max(row["to_bare"] for row in ours), max(row["peak_gb"] for row in ours)
    publish(
        "selection",
        rows,
        {
            "to_bare": slowest,
            "peak_gb": largest,
            "linear": ours[-1]["seconds_per_million"] / ours[0]["seconds_per_million"],
            "target": {"to_bare": RATIO, "peak_gb": PEAK_GB},
            "meets": slowest <= RATIO and largest <= PEAK_GB and all(row["same_bytes"] for row in ours),
        },
        wanted.quick,
    )


if __name__ == "__main__":
    main()
