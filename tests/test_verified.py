"""A changed byte in an artifact is noticed at its first read, and files that did not change are read once."""

import json
import os
import time
from pathlib import Path

import pytest

from selftrain.flows.cli.main import main
from selftrain.ssl_tasks.errors import DamagedArtifact
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.report.page import report_data
from selftrain.ssl_tasks.store import file_digests
from selftrain.ssl_tasks.store.artifacts import MANIFEST, Artifact, verified
from selftrain.ssl_tasks.store.runs import Run
from tests.bodies import Behaviour
from tests.made_run import make_run

HOUR = 3600 * 10**9


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def settle(folder: Path) -> None:
    """Files that were written a moment ago are not remembered: they may change again within one tick of the clock."""
    for path in folder.rglob("*"):
        os.utime(path, ns=(time.time_ns() - HOUR,) * 2)


@pytest.fixture
def run(workspace: Path) -> Run:
    return make_run(workspace)


@pytest.mark.parametrize("words", [["labels", "last"], ["sql", "last", "from predictions"], ["report", "last"]])
@pytest.mark.parametrize("stage", ["dataset", "predict-1", "select-1"])
def test_a_flipped_bit_is_named_with_the_remedy_and_code_3(
    run: Run, words: list[str], stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = run.artifact(stage)
    assert artifact is not None
    table = next(
        path
        for path in sorted(artifact.path.rglob("*"))
        if path.suffix in (".parquet", ".json") and path.name != MANIFEST
    )
    flip(table)
    assert main(["--workspace", str(run.workspace), *words]) == 3
    said = capsys.readouterr().err
    assert f"{table} has changed since it was written" in said
    assert "run its recipe again" in said


def test_verified_files_are_not_read_again_until_they_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run.artifact("predict-1")
    assert artifact is not None
    settle(artifact.path)
    monkeypatch.setattr(file_digests, "RACY_NS", 0)  # the time of the last change of an inode cannot be set
    reads = []
    digest = file_digests._digest
    monkeypatch.setattr(file_digests, "_digest", lambda path: reads.append(path) or digest(path))
    verified(artifact)
    assert len(reads) == len(artifact.manifest["files"])
    verified(artifact)
    assert len(reads) == len(artifact.manifest["files"])
    flip(artifact.file("validation.parquet"))
    with pytest.raises(DamagedArtifact, match=r"validation\.parquet has changed since"):
        verified(artifact)


def test_a_changed_manifest_is_noticed(run: Run) -> None:
    artifact = run.artifact("predict-1")
    assert artifact is not None
    manifest = json.loads(artifact.file(MANIFEST).read_text())
    manifest["files"].pop("validation.parquet")
    with pytest.raises(DamagedArtifact, match="does not match its digest"):
        verified(Artifact(artifact.path, manifest))


def test_a_stage_does_not_compute_from_a_changed_input(workspace: Path) -> None:
    made = execute(Request("a", "a", 1, "tests.bodies:behave", Behaviour()), workspace).artifact
    flip(made.file("result.txt"))
    asked = Request("b", "b", 1, "tests.bodies:behave", Behaviour(), {"input": made})
    with pytest.raises(DamagedArtifact, match=r"result\.txt has changed since"):
        execute(asked, workspace)


def test_a_report_verifies_what_it_reads(run: Run) -> None:
    assert run.dataset is not None
    flip(run.dataset.file("info.json"))
    with pytest.raises(DamagedArtifact):
        report_data(run)
