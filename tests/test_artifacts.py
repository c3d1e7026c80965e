"""The store: answered once, committed whole, damage noticed."""

import json
import os
from pathlib import Path

import pytest

from selftrain.ssl_tasks.errors import DamagedArtifact, UserError
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.store.artifacts import Store, check_files, digest_json, stage_key, write_atomically
from tests.bodies import Behaviour


def request(**changes: str) -> Request:
    """A request to the well-behaved body."""
    return Request("greet", "greet", 1, "tests.bodies:behave", Behaviour(**changes))


def executions(workspace: Path) -> int:
    """Counts the executions of a body."""
    path = workspace / "executions.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_the_same_question_is_answered_once(workspace: Path) -> None:
    first, second = execute(request(), workspace), execute(request(), workspace)
    assert (first.reused, second.reused, executions(workspace)) == (False, True, 1)
    assert first.artifact.digest == second.artifact.digest
    assert second.artifact.summary == {"length": 5}
    assert second.artifact.parts == {"all": "hello"}


def test_key_changes_with_section_version_inputs_and_seed_alone() -> None:
    key = stage_key("train", 1, {"a": 1}, {"data": "d"})
    assert key == stage_key("train", 1, {"a": 1}, {"data": "d"})
    others = {
        stage_key("predict", 1, {"a": 1}, {"data": "d"}),
        stage_key("train", 2, {"a": 1}, {"data": "d"}),
        stage_key("train", 1, {"a": 2}, {"data": "d"}),
        stage_key("train", 1, {"a": 1}, {"data": "e"}),
        key,
    }
    assert len(others) == 5
    assert request().key != Request("greet", "greet", 1, "tests.bodies:behave", Behaviour(), seed=1).key


def test_equal_contents_have_equal_digests_whatever_the_key(workspace: Path) -> None:
    one = execute(Request("a", "a", 1, "tests.bodies:behave", Behaviour()), workspace).artifact
    two = execute(Request("b", "b", 7, "tests.bodies:behave", Behaviour()), workspace).artifact
    assert one.key != two.key
    assert one.digest == two.digest


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_artifact_is_quarantined_and_recomputed(workspace: Path, damage: str) -> None:
    artifact = execute(request(), workspace).artifact
    file = artifact.file("artifact.json" if damage == "manifest" else "result.txt")
    match damage:
        case "flip":
            file.write_text("hellp")
        case "truncate":
            file.write_text("hel")
        case "remove":
            file.unlink()
        case "manifest":
            file.write_text(file.read_text()[:-30])
    again = execute(request(), workspace)
    assert not again.reused
    assert again.artifact.digest == artifact.digest
    assert len(list((workspace / "store" / "quarantine").iterdir())) == 1


def test_a_failed_attempt_commits_nothing_and_keeps_its_scratch(workspace: Path) -> None:
    bad = request(how="user_error")
    with pytest.raises(UserError, match="buy apples"):
        execute(bad, workspace)
    store = Store(workspace / "store")
    assert store.find("greet", bad.key) is None
    assert (store.attempt("greet", bad.key) / "scratch").is_dir()


def test_force_recomputes_and_moves_the_old_artifact_aside(workspace: Path) -> None:
    execute(request(), workspace)
    assert not execute(request(), workspace, force=True).reused
    assert executions(workspace) == 2
    assert len(list((workspace / "store" / "quarantine").iterdir())) == 1


def test_check_names_the_file(workspace: Path) -> None:
    artifact = execute(request(), workspace).artifact
    artifact.file("result.txt").write_text("hellO")
    check_files(artifact, digests=False)
    with pytest.raises(DamagedArtifact, match=r"result\.txt has changed since"):
        check_files(artifact)


def test_the_digest_of_json_ignores_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})
    assert digest_json([1, 2]) != digest_json([2, 1])


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, json.dumps({"a": 1}))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, json.dumps({"a": 2}))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
