"""Any bytes as a file of corrections: they are in force as is said, or a message says why not and nothing changed."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.flows.cli.main import main
from selftrain.flows.tables import counted
from selftrain.ssl_tasks.settings.pseudo_labels import CorrectedSettings
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run, StageRecord, corrections_path
from tests.pseudo_labels.tables import Row, Tables, run_select

IDS = ("s0", "a\rb", "=1+1", "'=x", "c,d", 'q"q', " blank ", "new\nline", "\ufeffbom", "l0")
CLASSES = ("reject", " lead ", "class:x", "-1", "(reject)")
CELLS = st.sampled_from((*IDS, *CLASSES, "sample_id", "label", "content", "", "lead", "class:reject")) | st.text(
    max_size=8
)
CELL = CELLS.flatmap(lambda text: st.sampled_from([text, '"' + text.replace('"', '""') + '"', f'"{text}', f"'{text}"]))
ROW = st.lists(CELL, min_size=1, max_size=4)
HEAD = st.sampled_from(
    [["sample_id", "label"]] * 6 + [["label", "note", "sample_id"], ["sample_id"], ["label", "label"]]
)
GOOD = st.tuples(st.sampled_from(IDS), st.sampled_from((*CLASSES, "class:reject", "class:class:x", "(reject)"))).map(
    lambda pair: ['"' + text.replace('"', '""') + '"' for text in pair]
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly a file of corrections, or none at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    delimiter = draw(st.sampled_from(",,,,;\t|"))
    rows = [draw(HEAD), *draw(st.lists(GOOD, max_size=4) if draw(st.booleans()) else st.lists(ROW, max_size=4))]
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = end.join(delimiter.join(row) for row in rows) + draw(st.sampled_from(["", end, end * 2, "\0"]))
    data = text.encode(draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1"])), "replace")
    return data if draw(st.integers(0, 4)) else data[: draw(st.integers(0, len(data)))]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    rows = [Row(name, number % len(CLASSES), 0.9) for number, name in enumerate(IDS[:-1])]
    folder = tmp_path_factory.mktemp("tables")
    made = Tables(folder, rows, classes=len(CLASSES), labeled=[("l0", 0, "c-l0")], names=CLASSES)
    dataset, _ = made.write()
    (dataset.path / "info.json").write_text(json.dumps({"classes": CLASSES}))
    named = {
        "stage": "dataset",
        "key": "k",
        "digest": "d",
        "files": {},
        "inputs": {},
        "settings": {},
        "seconds": 0.0,
        "finished": 0.0,
    }
    (dataset.path / "artifact.json").write_text(json.dumps({**named, **dataset.manifest}))
    return made


@pytest.fixture(scope="module")
def run(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = RunConfig.model_validate({"name": "fuzz", "data": {"source": {"name": "digits"}}})
    run = Run.create(tmp_path_factory.mktemp("workspace"), config)
    shutil.copytree(tables.folder / "dataset", run.workspace / "store" / "dataset" / "k")
    folder = str(run.workspace / "store" / "dataset" / "k")
    run.record(StageRecord(name="dataset", stage="dataset", state="computed", key="k", artifact=folder))
    return run


def apply(run: Run, file: Path) -> tuple[int, str, str]:
    """The command's exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["--workspace", str(run.workspace), "labels", "apply", run.id, str(file)])
    return code, out.getvalue(), err.getvalue()


def in_force(tables: Tables, kept: Path, folder: Path) -> int:
    """Counts the corrections that the selection uses."""
    shutil.rmtree(folder, ignore_errors=True)
    found = run_select(tables, folder, CorrectedSettings(corrections=kept)).file("overrides.parquet")
    return pq.read_metadata(found).num_rows if found.exists() else 0


@settings.get_profile("fuzz")
@given(st.lists(st.tuples(files(), st.sampled_from(["csv", "csv", "csv", "parquet"])), min_size=1, max_size=3))
def test_corrections_are_in_force_as_it_is_said_or_refused_whole(
    run: Run, tables: Tables, tmp_path: Path, given_files: list[tuple[bytes, str]]
) -> None:
    kept = corrections_path(run.workspace, "fuzz")
    kept.unlink(missing_ok=True)
    for content, suffix in given_files:
        file = tmp_path / f"given.{suffix}"
        file.write_bytes(content)
        before = kept.read_bytes() if kept.exists() else None
        code, out, err = apply(run, file)
        if code == 0:
            number = counted(in_force(tables, kept, tmp_path / "selection"), "correction")
            assert out.startswith(f"{number} in force")
            continue
        assert code == 2, err
        assert err.startswith("selftrain: ")
        assert "traceback: " not in err
        assert len(err) < 4_000
        assert all(line.isprintable() for line in err.splitlines())
        assert (kept.read_bytes() if kept.exists() else None) == before
