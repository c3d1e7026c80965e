"""A user's folder may hold a models.py, flows.py or even selftrain.py: none of our processes takes them for ours."""

from pathlib import Path

import pytest

from selftrain.ssl_tasks.execution.startup import ROOT, folder_hides_us
from tests.flows.own_folder import own_folder, run_in
from tests.flows.tiny import last, states


def test_a_run_ends_well_where_the_users_files_are_named_like_our_packages(
    tmp_path: Path, fresh: Path, recipe: str
) -> None:
    """The fork server, the ranks of two training processes, and what ships to MLflow."""
    words = ("run", recipe, "--set", "rounds=[]", "--set", "runtime.processes=2")
    done = run_in(own_folder(tmp_path / "home"), fresh, *words)
    assert done.returncode == 0, done.stderr
    assert set(states(last(fresh)).values()) == {"computed"}
    assert "not yet in MLflow" not in done.stderr
    told = [*fresh.glob("runs/*/logs/*.log"), *fresh.glob("tracking/*.log")]
    assert not [path for path in told if "the user prints" in path.read_text()]
    assert "the user prints" not in done.stdout + done.stderr


def test_a_folder_hides_our_packages_where_it_has_one_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "selftrain").mkdir()
    (tmp_path / "selftrain" / "weights.bin").touch()
    assert not folder_hides_us(), "a folder that is no package comes after ours"
    (tmp_path / "selftrain" / "__init__.py").touch()
    assert folder_hides_us()
    monkeypatch.chdir(own_folder(tmp_path / "home"))
    assert folder_hides_us()
    monkeypatch.chdir(ROOT)
    assert not folder_hides_us(), "they are ours"
