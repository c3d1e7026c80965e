"""Started early: always the process that uses MLflow, and torch only if something must be computed."""

from pathlib import Path

import pytest

from selftrain.flows.rounds import pipeline
from selftrain.ssl_tasks.settings.recipe import load_recipe


@pytest.mark.parametrize(
    ("overrides", "force", "torch"),
    [((), (), False), ((), ("teacher",), True), (("rounds.2.select.threshold=0.2",), (), True)],
    ids=["answered", "asked for anew", "changed"],
)
def test_torch_is_imported_ahead_where_anything_is_likely_to_be_computed(
    finished: Path,
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    force: tuple[str, ...],
    torch: bool,
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(pipeline, "start_ahead", lambda *_: begun.append("mlflow"))
    monkeypatch.setattr(pipeline, "start_fork_server", lambda: begun.append("torch"))
    pipeline.warm_up(load_recipe(recipe, overrides).config, finished, force)
    assert begun == ["mlflow", *["torch"] * torch]


def test_in_a_fresh_workspace_everything_is_begun(tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(pipeline, "start_ahead", lambda *_: begun.append("mlflow"))
    monkeypatch.setattr(pipeline, "start_fork_server", lambda: begun.append("torch"))
    pipeline.warm_up(load_recipe(recipe).config, tmp_path)
    assert begun == ["mlflow", "torch"]
