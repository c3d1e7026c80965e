"""`clean --yes` deletes nothing that a running process may use, and names the process."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from selftrain.flows.actions import housekeeping
from selftrain.flows.actions.housekeeping import clean
from selftrain.flows.actions.measuring import evaluate
from selftrain.flows.actions.models import export, predict
from selftrain.flows.rounds import conductor
from selftrain.ssl_tasks.errors import UserError
from selftrain.ssl_tasks.execution.process import run_isolated
from selftrain.ssl_tasks.execution.stage import Request, StageContext, StageResult
from selftrain.ssl_tasks.store.artifacts import Store
from selftrain.ssl_tasks.store.locks import at_work, file_lock

WRITTEN = {"stage": "train", "key": "stray", "digest": "", "files": {}}
WRITTEN |= {"inputs": {}, "settings": {}, "seconds": 0.0, "finished": 0.0}


def stray(workspace: Path) -> Path:
    """An artifact that no run references."""
    folder = workspace / "store" / "train" / "stray"
    folder.mkdir(parents=True)
    (folder / "artifact.json").write_text(json.dumps(WRITTEN))
    return folder


def test_clean_takes_no_data_set_from_under_an_evaluation(
    copy: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Path] = []

    def run(request: Request, context: StageContext, log: Path) -> StageResult:
        if request.stage == "evaluate":
            cleaned = clean(copy, dry_run=False)
            assert "another command" in cleaned.at_work[0]
            assert cleaned.paths == ()
            left.append(context.inputs["dataset"].path)
            with pytest.raises(UserError, match="is using the cache"):
                clean(copy, dry_run=False, cache=True)
        return run_isolated(request, context, log)

    monkeypatch.setattr(conductor, "run_isolated", run)
    evaluate("student-1", recipe, ["data.split.test=50"], workspace=copy, against=None)
    (dataset,) = left
    assert Store(copy / "store").find("dataset", dataset.name) is not None
    assert dataset in clean(copy).paths, "now it is idle"


def test_predict_and_export_are_at_work_while_they_read(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, ...]] = []

    def look(*_arguments: Any) -> float:
        found.append(clean(copy).at_work)
        return 0.0

    monkeypatch.setattr("selftrain.ssl_tasks.trained.classify.classify", look)
    monkeypatch.setattr("selftrain.ssl_tasks.trained.classify.listed_images", lambda _paths: [])
    monkeypatch.setattr("selftrain.ssl_tasks.trained.export.export_model", look)
    predict("student-1", [tmp_path], workspace=copy)
    export("student-1", tmp_path / "model.pt2", workspace=copy)
    assert [len(one) for one in found] == [1, 1]
    assert clean(copy).at_work == ()


def test_a_run_that_begins_while_clean_counts_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, attempt = stray(tmp_path), tmp_path / "store" / "attempts" / "train-key"
    old = tmp_path / "store" / "quarantine" / "train-old"
    attempt.mkdir(parents=True)
    old.mkdir(parents=True)
    count = housekeeping._size
    with ExitStack() as run:

        def begin(paths: Any) -> int:
            run.enter_context(at_work(tmp_path))
            run.enter_context(file_lock(tmp_path / "store" / "locks" / "train-key"))
            monkeypatch.setattr(housekeeping, "_size", count)
            return count(paths)

        monkeypatch.setattr(housekeeping, "_size", begin)
        assert clean(tmp_path, dry_run=False).paths == (old,)
        assert artifact.exists()
        assert attempt.exists()
        assert not old.exists()
    assert clean(tmp_path, dry_run=False).paths == (artifact, attempt)


def test_clean_of_a_workspace_that_is_not_there_makes_none(tmp_path: Path) -> None:
    assert clean(tmp_path / "none", dry_run=False).paths == ()
    assert not (tmp_path / "none").exists()
