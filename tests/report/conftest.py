"""One real run of two rounds for all tests of the report, on images whose names attack it; and a real browser."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selftrain.flows.rounds.conductor import Conductor, finished
from selftrain.flows.rounds.self_training import self_training
from selftrain.ssl_tasks.report.page import write_report
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run
from tests.browser import Browser, browser
from tests.report.hostile import CLASSES, sample_id

__all__ = ["Browser", "browser"]  # for the tests beside us
SIZE, IMAGES = 20, 240
LEARNER = {
    "model": {"name": "mlp", "width": 32},
    "train": {
        "steps": 60, "batch_size": 12, "unlabeled_ratio": 2, "evaluate_every": 20, "learning_rate": 0.05,
        "median_of": 2,
    },
}  # fmt: skip


def write_table(path: Path) -> None:
    """Images of a table with hostile ids and labels: each class has its own bright corner, in noise."""
    generator = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"image": [], "label": [], "id": []}
    for number in range(IMAGES):
        label = number % len(CLASSES)
        pixels = generator.integers(0, 200, (SIZE, SIZE, 3))
        pixels[:8, label * 6 : label * 6 + 6] += 50
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
        rows["image"].append(stream.getvalue())
        rows["label"].append(CLASSES[label])
        rows["id"].append(sample_id(number))
    pq.write_table(pa.table(rows), path)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A teacher and two students, with every hidden truth known."""
    folder = tmp_path_factory.mktemp("report")
    write_table(folder / "images.parquet")
    one_round = {"predict": {"views": 2}, "select": {"threshold": 0.5}, "student": LEARNER}
    config = RunConfig.model_validate(
        {
            "name": "hostile",
            "data": {
                "source": {"name": "table", "path": folder / "images.parquet", "id": "id"},
                "split": {"labels_per_class": 4, "validation": 30, "test": 30},
            },
            "teacher": LEARNER,
            "rounds": [one_round, one_round],
            "runtime": {"threads": 1},
        }
    )
    run = Run.create(folder / "workspace", config)
    conductor = Conductor(config, run.workspace, run)
    summary = self_training(config, conductor)
    conductor.close()
    run.write_summary(summary.as_json())
    finished(run, None, summary.stopped)
    return run


@pytest.fixture(scope="session")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's report."""
    return write_report(run, tmp_path_factory.mktemp("page") / "report.html")
