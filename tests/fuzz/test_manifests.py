"""JSON files of ours, changed by a person or a disk: quarantined, ignored or named in one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.flows.cli.main import main
from selftrain.ssl_tasks.errors import DamagedArtifact, StageFailed
from selftrain.ssl_tasks.execution.process import RESULT, _read_result
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.store.artifacts import MANIFEST, Store
from selftrain.ssl_tasks.tracking.lineage import UP, served_at
from selftrain.ssl_tasks.tracking.spool import Sent, Spool, spools
from selftrain.ssl_tasks.tracking.trace import verify
from selftrain.ssl_tasks.trained.model import load_card
from tests.bodies import Behaviour
from tests.made_run import make_run

REQUEST = Request("greet", "greet", 1, "tests.bodies:behave", Behaviour())
HOSTILE = {
    "list": b"[]",
    "null": b"null",
    "number": b"1",
    "text": b'"artifact"',
    "empty": b"",
    "empty object": b"{}",
    "half": b'{"stage": "greet", "ke',
    "not UTF-8": b'{"stage": "\xff\xfe"}',
    "zeros": bytes(1000),
    "deep": b"[" * 200_000,
    "deep object": b'{"a":' * 200_000,
    "a long number": b'{"seconds": ' + b"9" * 5000 + b"}",
    "larger than is read": b" " * 65_000_000,
}
SPOOLED = {"kind": "header", "time": 1.0, "uri": "x", "experiment": "e", "host": "h", "pid": 1, "pid_started": 1.0}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def changed(draw: st.DrawFn, original: dict[str, Any]) -> bytes:
    """The object with an entry removed or replaced, at any depth; or its text with some bytes changed."""
    value = json.loads(json.dumps(original))
    if draw(st.booleans()):
        at, path = value, draw(st.integers(1, 3))
        for _ in range(path):
            name = draw(st.sampled_from(sorted(at)))
            if not isinstance(at[name], dict) or not at[name]:
                break
            at, name = at[name], draw(st.sampled_from(sorted(at[name])))
        if draw(st.booleans()):
            at.pop(name, None)
        else:
            at[name] = draw(json_values)
        return as_bytes(value)
    text = bytearray(as_bytes(value))
    for _ in range(draw(st.integers(1, 4))):
        text[draw(st.integers(0, len(text) - 1))] = draw(st.integers(0, 255))
    return bytes(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one artifact."""
    workspace = tmp_path_factory.mktemp("finished")
    execute(REQUEST, workspace)
    manifest = Store(workspace / "store").path("greet", REQUEST.key) / MANIFEST
    (workspace / "right.json").write_bytes(manifest.read_bytes())
    return workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run of one round."""
    workspace = tmp_path_factory.mktemp("made")
    make_run(workspace)
    return workspace


def check_manifest(workspace: Path, text: bytes) -> None:
    """With this manifest, the artifact is reused, or moved aside and computed again with the same answer."""
    store = Store(workspace / "store")
    manifest = store.path("greet", REQUEST.key) / MANIFEST
    right = (workspace / "right.json").read_bytes()
    digest = json.loads(right)["digest"]
    manifest.write_bytes(text)
    list(store.artifacts())
    verify(store)
    outcome = execute(REQUEST, workspace)
    assert outcome.artifact.digest == digest
    shutil.rmtree(store.root / "quarantine", ignore_errors=True)
    assert execute(REQUEST, workspace).reused
    manifest.write_bytes(right)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_of_the_wrong_shape_is_quarantined_and_computed_again(finished: Path, name: str) -> None:
    store = Store(finished / "store")
    (store.path("greet", REQUEST.key) / MANIFEST).write_bytes(HOSTILE[name])
    with pytest.raises(DamagedArtifact, match="is damaged"):
        store.find("greet", REQUEST.key)
    assert list(store.artifacts()) == []
    assert [damage.file for damage in verify(store)] == [MANIFEST]
    assert not execute(REQUEST, finished).reused
    assert len(list((store.root / "quarantine").iterdir())) == 1
    shutil.rmtree(store.root / "quarantine")


def test_a_manifest_that_is_missing_or_a_folder_is_quarantined(finished: Path) -> None:
    manifest = Store(finished / "store").path("greet", REQUEST.key) / MANIFEST
    for make in (manifest.unlink, lambda: (manifest.unlink(), manifest.mkdir())):
        make()
        assert not execute(REQUEST, finished).reused


@settings.get_profile("fuzz")
@given(data=st.data())
def test_a_changed_manifest_is_reused_or_quarantined(finished: Path, data: st.DataObject) -> None:
    check_manifest(finished, data.draw(changed(json.loads((finished / "right.json").read_text()))))


RECORDS = ("run.json", "summary.json", "stages/predict-1.json", "config.yaml")
VERBS = (["status"], ["labels", "last"], ["sql", "last", "select 1"], ["status", "--all"], ["clean"])


def outcomes(workspace: Path, capsys: pytest.CaptureFixture[str], verbs: Any = VERBS) -> set[int]:
    """The exit codes of verbs that read a run; each says at most a few sentences and leaves no crash file."""
    codes = set()
    for crash in workspace.glob("logs/crash-*"):
        crash.unlink()
    for words in verbs:
        codes.add(main(["--workspace", str(workspace), *words]))
        said = capsys.readouterr().err
        assert "unexpected" not in said
        assert "Traceback" not in said
    assert not list(workspace.glob("logs/crash-*"))
    return codes


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_record_of_a_run_is_one_sentence(
    made: Path, record: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = made.glob(f"runs/*/{record}")
    right = path.read_bytes()
    path.write_bytes(HOSTILE[name])
    try:
        assert outcomes(made, capsys, VERBS[:3]) <= {0, 2, 3}
    finally:
        path.write_bytes(right)


@settings.get_profile("fuzz")
@given(data=st.data())
def test_a_changed_record_of_a_run_is_one_sentence(
    made: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    record = data.draw(st.sampled_from(RECORDS[:3]))
    (path,) = made.glob(f"runs/*/{record}")
    right = path.read_bytes()
    path.write_bytes(data.draw(changed(json.loads(right))))
    try:
        assert outcomes(made, capsys) <= {0, 2, 3}
    finally:
        for one in made.glob("runs/*/run.json"):  # states of dead runs are mended
            if record != "run.json":
                one.write_bytes(one.read_bytes())
        path.write_bytes(right)


@pytest.mark.parametrize("name", HOSTILE)
def test_other_files_of_ours_are_passed_over_or_named(tmp_path: Path, name: str) -> None:
    text = HOSTILE[name]
    (tmp_path / UP).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / UP).write_bytes(text)
    assert served_at(tmp_path) == ""
    (tmp_path / RESULT).write_bytes(text)
    if name != "empty object":
        with pytest.raises(StageFailed, match="damaged"):
            _read_result("teacher", tmp_path / RESULT, 0, tmp_path / "log.txt")
    (tmp_path / "model.json").write_bytes(text)
    with pytest.raises(DamagedArtifact, match="not a model's card"):
        load_card(tmp_path)
    folder = tmp_path / "tracking" / "spool"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(text + b"\n")
    (folder / "b.jsonl").write_bytes(as_bytes(SPOOLED) + b"\n" + text + b"\n")
    assert [spool.path.name for spool in spools(tmp_path)] == ["b.jsonl"]
    spool = Spool(folder / "b.jsonl")
    assert spool.open_runs() == {}
    Sent.load(spool, "x").mark(3)
    sent = next(folder.glob("b.*.sent"))
    sent.write_bytes(text + b"\n" + sent.read_bytes())
    assert Sent.load(spool, "x").offset == 3
