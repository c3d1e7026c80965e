"""Measures the time of `selftrain labels` and `selftrain sql` on a million predictions, for the whole command.

    python benchmarks/looking.py [--quick]

The run is made as in report_size.py: predictions are drawn at random around the truth, no network is trained. Each
question is asked three times by a fresh process; its median counts.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import publish
from benchmarks.report_size import Making
from selftrain.flows.actions.looking import tables_of
from selftrain.ssl_tasks.settings.run_config import RunConfig

SECONDS, TIMES = 2.0, 3
QUESTIONS = {
    "labels": ["labels", "last", "--limit", "20"],
    "labels, filtered and sorted": [
        *("labels", "last", "--selected", "--class", "{class}", "--min-confidence", "0.6", "--sort", "margin"),
    ],
    "labels review": ["labels", "review", "last", "--limit", "20"],
    "sql, a selection by class": [
        *(
            "sql",
            "last",
            "select class, count(*), sum(copies), avg(confidence) from selection group by class order by 1",
        ),
    ],
    "sql, right by class": [
        "sql",
        "last",
        "select p.class, count(*), avg((p.label = m.truth)::int) from predictions p join manifest m using (sample_id) "
        "group by p.class order by 1",
    ],
    "sql, the largest probabilities": [
        *("sql", "last", "select sample_id, list_max(probs) as p from predictions order by p desc, sample_id limit 20"),
    ],
}


def make_run(images: int, classes: int, folder: Path) -> str:
    """A run of one round; returns the name of one of its classes."""
    config = RunConfig.model_validate(
        {
            "name": f"looking-{images}-{classes}",
            "data": {
                "source": {"name": "synthetic", "size": images, "classes": classes, "image_size": 32},
                "split": {"labels_per_class": 5, "validation": min(5_000, images // 10)},
            },
            "rounds": [{"select": {"threshold": 0.5}}],
        }
    )
    run = Making(folder, config).make()
    return tables_of(run).classes[0]


def asked(workspace: Path, words: list[str]) -> dict[str, Any]:
    """Seconds of whole processes, and the lines of their answer."""
    command = [sys.executable, "-m", "selftrain", "--workspace", str(workspace), *words]
    seconds = []
    for _ in range(TIMES):
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - started)
    return {"seconds": round(median(seconds), 2), "worst": round(max(seconds), 2), "lines": done.stdout.count("\n")}


def main() -> None:
    """A small table with --quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    images, classes = (20_000, 10) if quick else (1_000_000, 100)
    rows = []
    with tempfile.TemporaryDirectory(prefix="looking-") as folder:
        workspace = Path(folder) / "workspace"
        name = make_run(images, classes, workspace)
        for question, words in QUESTIONS.items():
            rows.append({"question": question, **asked(workspace, [word.replace("{class}", name) for word in words])})
    slowest = max(row["seconds"] for row in rows)
    target = {"seconds": SECONDS, "of": "every question, 1,000,000 predictions of 100 classes, the median of three"}
    summary = {"predictions": images, "classes": classes, "slowest": slowest, "target": target}
    publish("looking", rows, {**summary, "meets": slowest < SECONDS}, quick)


if __name__ == "__main__":
    main()
