"""Corrections from one run to the next: what is in force, and what does not fit the data any more, is said."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from selftrain.flows.cli.main import main
from selftrain.flows.cli.running import show_summary
from selftrain.flows.rounds.conductor import Conductor, finished
from selftrain.flows.rounds.self_training import self_training
from selftrain.ssl_tasks.report.page import report_data
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run

CLASSES = (" lead ", "reject")
LEARNER = {"model": {"name": "mlp", "width": 8}, "train": {"steps": 6, "batch_size": 4, "evaluate_every": 3}}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders with awkward names, and unlabelled images with awkward names."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    names = [f"{name}/{number}.png" for name in CLASSES for number in range(12)]
    for name in (*names, "unlabeled/a\rb.png", "unlabeled/=1+1.png", "unlabeled/c.png", "unlabeled/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (8, 8), np.uint8)).save(folder / name)
    return folder


def run_once(folder: Path, workspace: Path) -> Run:
    """A run in this process, with one round that accepts everything."""
    config = RunConfig.model_validate(
        {
            "name": "odd",
            "data": {"source": {"name": "folder", "path": folder}, "split": {"validation": 6, "test": 4}},
            "teacher": LEARNER,
            "rounds": [{"select": {"threshold": 0.0, "balance": "none"}, "student": LEARNER}],
            "runtime": {"threads": 1},
        }
    )
    run = Run.create(workspace, config)
    conductor = Conductor(config, run.workspace, run)
    summary = self_training(config, conductor)
    conductor.close()
    run.write_summary(summary.as_json())
    finished(run, None, summary.stopped)
    return run


def overrides(run: Run) -> dict[str, float]:
    artifact = run.artifact("select-1")
    assert artifact is not None
    return dict(pd.read_parquet(artifact.file("overrides.parquet"), columns=["sample_id", "label"]).values)


def test_corrections_of_awkward_names_are_in_force_and_what_fits_no_more_is_counted(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "workspace"
    first = run_once(images, workspace)
    show_summary(first, as_json=False)
    assert "corrections" not in capsys.readouterr().out
    given = tmp_path / "given.csv"

    def apply(rows: str) -> str:
        given.write_text("sample_id,label\n" + rows, newline="")
        assert main(["--workspace", str(workspace), "labels", "apply", "odd", str(given)]) == 0
        return capsys.readouterr().out

    assert apply('"unlabeled/a\rb.png",class:reject\nunlabeled/c.png,(reject)\n').startswith("2 corrections in force")
    assert apply("unlabeled/d.png,lead\n").startswith("3 corrections in force for 'odd' (1 new, 0 changed)")
    assert apply("unlabeled/=1+1.png,lead\n").startswith("4 corrections in force")
    second = run_once(images, workspace)
    assert second.summary["unmatched_corrections"] == 0
    said = overrides(second)
    assert np.isnan(said.pop("unlabeled/c.png")), "rejected"
    assert said == {"unlabeled/a\rb.png": 1, "unlabeled/d.png": 0, "unlabeled/=1+1.png": 0}
    assert report_data(second).rounds[1].unmatched_corrections == 0

    (images / "unlabeled" / "a\rb.png").unlink()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(images / "unlabeled" / "d.png")
    third = run_once(images, workspace)
    assert third.summary["unmatched_corrections"] == 2
    assert set(overrides(third)) == {"unlabeled/c.png", "unlabeled/=1+1.png"}
    assert report_data(third).rounds[1].unmatched_corrections == 2
    show_summary(third, as_json=False)
    said_at_the_end = capsys.readouterr().out
    assert "2 corrections ignored, because the data has changed:\n" in said_at_the_end
    assert "  not in the data: unlabeled/a\\rb.png\n" in said_at_the_end
    assert "  the image has changed since a person labelled it: unlabeled/d.png\n" in said_at_the_end
