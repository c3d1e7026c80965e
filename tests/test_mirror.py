"""The store that machines share: fetched whole or not at all, offered files first and manifest last."""

import json
from pathlib import Path
from typing import Any

import pytest

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import Outcome, execute
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store import mirror as mirror_module
from selftrain.ssl_tasks.store.mirror import Mirror
from tests.test_artifacts import executions, request


@pytest.fixture
def shared(tmp_path: Path) -> str:
    """A mirror's address, where nothing is yet."""
    return (tmp_path / "shared").as_uri()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(mirror_module, "AWAY_SECONDS", 0.0)


def answer(machine: Path, url: str, force: bool = False) -> Outcome:
    """The question that all machines ask."""
    return execute(request(), machine, RuntimeSettings(store=url), force=force)


def break_storage(monkeypatch: pytest.MonkeyPatch, every: int, *methods: str) -> list[str]:
    """Lets every n-th call of these methods of the storage fail; returns the failures as they come."""
    from fsspec.implementations.local import LocalFileSystem

    failed: list[str] = []
    calls = [0]
    for name in methods or ("cat_file", "get_file", "put_file", "pipe_file", "info"):
        whole = getattr(LocalFileSystem, name)

        def faulty(self: Any, *words: Any, _whole: Any = whole, _name: str = name, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] % every == 0:
                failed.append(_name)
                raise OSError(5, "the storage blinked")
            return _whole(self, *words, **named)

        monkeypatch.setattr(LocalFileSystem, name, faulty)
    return failed


def test_what_one_machine_made_another_fetches(tmp_path: Path, shared: str) -> None:
    first, second = answer(tmp_path / "a", shared), answer(tmp_path / "b", shared)
    assert (first.reused, second.reused) == (False, True)
    assert second.artifact.digest == first.artifact.digest
    assert second.artifact.file("result.txt").read_text() == "hello"
    assert executions(tmp_path / "b") == 0
    assert not list((tmp_path / "b/store/attempts").glob("*"))


def test_without_a_manifest_nothing_is_fetched(tmp_path: Path, shared: str) -> None:
    answer(tmp_path / "a", shared)
    next((tmp_path / "shared/artifacts").rglob("*.json")).unlink()
    assert not answer(tmp_path / "b", shared).reused


def test_an_upload_that_stops_half_way_leaves_no_manifest(
    tmp_path: Path, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        break_storage(broken, 1, "put_file")
        assert not answer(tmp_path / "a", shared).reused, "a storage that is away stops no stage"
    assert not list((tmp_path / "shared").rglob("*.json"))
    assert answer(tmp_path / "a", shared).reused, "the next run copies it again"
    assert answer(tmp_path / "b", shared).reused


@pytest.mark.parametrize("damage", ["contents", "missing", "manifest", "digest", "other"])
def test_a_damaged_object_in_the_mirror_is_recomputed(tmp_path: Path, shared: str, damage: str) -> None:
    answer(tmp_path / "a", shared)
    stored = next((tmp_path / "shared/objects").iterdir())
    marker = next((tmp_path / "shared/artifacts").rglob("*.json"))
    manifest = json.loads(marker.read_text())
    match damage:
        case "contents":
            stored.write_text("jello")
        case "missing":
            stored.unlink()
        case "manifest":
            marker.write_text(marker.read_text()[:-20])
        case "digest":
            marker.write_text(json.dumps({**manifest, "digest": "0" * 64}))
        case "other":
            marker.write_text(json.dumps({**manifest, "key": "0" * 64}))
    outcome = answer(tmp_path / "b", shared)
    assert not outcome.reused
    assert outcome.artifact.file("result.txt").read_text() == "hello"


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped-selftrain", "a/../../../escaped", ""])
def test_no_manifest_writes_outside_of_its_artifact(tmp_path: Path, shared: str, name: str) -> None:
    answer(tmp_path / "a", shared)
    marker = next((tmp_path / "shared/artifacts").rglob("*.json"))
    manifest = json.loads(marker.read_text())
    manifest["files"] = {name: next(iter(manifest["files"].values()))}
    marker.write_text(json.dumps(manifest))
    assert not answer(tmp_path / "b", shared).reused
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped-selftrain").exists()


def test_every_second_request_failing_changes_nothing(
    tmp_path: Path, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = break_storage(monkeypatch, 2)
    first, second = answer(tmp_path / "a", shared), answer(tmp_path / "b", shared)
    assert {"put_file", "pipe_file", "get_file"} & set(failed)
    assert (first.reused, second.reused) == (False, True)
    assert second.artifact.digest == first.artifact.digest


def test_a_forced_stage_replaces_the_artifact_in_the_mirror(tmp_path: Path, shared: str) -> None:
    answer(tmp_path / "a", shared)
    marker = next((tmp_path / "shared/artifacts").rglob("*.json"))
    before = json.loads(marker.read_text())["finished"]
    assert not answer(tmp_path / "a", shared, force=True).reused
    assert json.loads(marker.read_text())["finished"] > before


def test_the_environment_names_the_store_for_every_recipe(
    tmp_path: Path, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFTRAIN_STORE", shared)
    execute(request(), tmp_path / "a")
    assert execute(request(), tmp_path / "b").reused


def test_an_unknown_storage_address_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="Expected an address as s3://"):
        Mirror("nosuch://bucket/folder")


def test_storage_that_is_away_is_not_asked_for_every_file(
    tmp_path: Path, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "AWAY_SECONDS", 60.0)
    monkeypatch.setattr(mirror_module, "_away_until", {})
    asked = break_storage(monkeypatch, 1)
    assert not answer(tmp_path / "a", shared).reused
    assert len(asked) == mirror_module.TRIES
