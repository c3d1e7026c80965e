"""A finished run written by hand: a data set, predictions and a selection in the store, without any training."""

import json
import shutil
from pathlib import Path

from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.runs import Run, StageRecord
from tests.pseudo_labels.tables import Held, Row, Tables, run_select

ROWS = [Row("a", 0, 0.9, feature_distance=0.1), Row("b", 1, 0.8), Row("c", 2, 0.2), Row("d", None, error="cut off")]


def make_run(workspace: Path, rows: list[Row] = ROWS) -> Run:
    """A run named `made` with one round."""
    scratch = workspace / "made-of"
    tables = Tables(scratch, rows, labeled=[("l0", 0, "x"), ("l1", 1, "y")], validation=[Held(0, 0, 0.9)])
    selection = run_select(tables, scratch / "selection", SelectSettings(threshold=0.5, balance="none"))
    dataset = tables.folder / "dataset"
    counts = {part: {"images": 2, "per_class": [1, 1, 0]} for part in ("labeled", "unlabeled", "validation", "test")}
    (dataset / "info.json").write_text(json.dumps({"classes": ["class-0", "class-1", "class-2"], "counts": counts}))
    run = Run.create(workspace, RunConfig.model_validate({"name": "made"}))
    folders = (("dataset", dataset), ("predict-1", tables.folder / "predictions-1"), ("select-1", selection.path))
    for order, (name, folder) in enumerate(folders):
        stage, _, number = name.partition("-")
        artifact = commit(workspace, stage, f"{order}" * 64, folder)
        run.record(
            StageRecord(
                name, stage, "computed", artifact.key, round=int(number or 0), digest=artifact.digest,
                artifact=str(artifact.path), order=order,
            )
        )  # fmt: skip
    run.update(state="done", stopped="all rounds are done", finished=1.0)
    run.write_summary({"stopped": "all rounds are done"})
    shutil.rmtree(scratch)
    return run


def commit(workspace: Path, stage: str, key: str, folder: Path) -> Artifact:
    """The folder's files as an artifact."""
    store = Store(workspace / "store")
    shutil.copytree(folder, store.attempt(stage, key) / "output")
    manifest = {"inputs": {}, "summary": {}, "parts": {}, "seconds": 0.1, "finished": 1.0, "settings": {}}
    return store.commit(stage, key, manifest)
