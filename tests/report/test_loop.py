"""The whole way of a correction: run → report → a click → a file → `labels apply` → the next run obeys, and says so."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from selftrain.ssl_tasks.pseudo_labels.corrections import REJECT
from selftrain.ssl_tasks.report.page import write_report
from selftrain.ssl_tasks.store.runs import Run, find_run
from tests.flows.tiny import selftrain, states
from tests.report.conftest import Browser
from tests.report.hostile import CLASSES
from tests.report.test_browser import choose, download, mark_three, until

pytestmark = pytest.mark.browser


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """The finished run in a workspace of one's own."""
    return Run(Path(shutil.copytree(run.workspace, tmp_path / "workspace")) / "runs" / run.id)


def chosen(run: Run, number: int) -> dict[str, tuple[int, str]]:
    """Label and source by sample, of a round's selection."""
    selection = run.artifact(f"select-{number}")
    assert selection is not None
    rows = pq.read_table(selection.file("selection.parquet")).to_pylist()
    return {row["sample_id"]: (row["label"], row["source"]) for row in rows}


def test_what_is_clicked_is_what_the_next_run_learns(own: Run, browser: Browser, tmp_path: Path) -> None:
    page = write_report(own, tmp_path / "before.html")
    browser.open(page)
    choose(browser, "round", "1")
    said = mark_three(browser)
    file = download(browser)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]

    applied = selftrain(own.workspace, "labels", "apply", own.id, str(file))
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout.startswith("3 corrections in force")
    again = selftrain(own.workspace, "run", str(own.path), "--no-prefect", "--json")
    assert again.returncode == 0, again.stderr

    after = find_run(own.workspace)
    state = states(after)
    assert after.id != own.id
    assert {state[name] for name in ("dataset", "teacher", "predict-1")} == {"reused"}
    assert {state[name] for name in ("select-1", "student-1", "select-2")} == {"computed"}
    names = sorted(CLASSES)
    before, now = chosen(own, 1), chosen(after, 1)
    for sample, label in said.items():
        assert before[sample][1] == "model"
        assert now.get(sample) == (None if label == REJECT else (names.index(label), "override"))
    others = (set(before) | set(now)) - set(said)
    assert all(now[sample] == before[sample] for sample in others if sample in before and sample in now)

    sample, label = next(
        (one, label) for one, label in said.items() if label != REJECT and names.index(label) != before[one][0]
    )
    lineage = selftrain(own.workspace, "lineage", sample, "--json")
    assert lineage.returncode == 0, lineage.stderr
    first = json.loads(lineage.stdout)["rounds"][0]
    assert (first["chosen_label"], first["source"], first["selected"]) == (label, "override", True)
    student = after.artifact("student-1")
    assert student is not None
    assert first["student"] == student.digest
    verified = selftrain(own.workspace, "lineage", after.id, "--verify")
    assert verified.returncode == 0, verified.stderr
    assert "corrections by people · 3 images" in verified.stdout

    page = write_report(after, tmp_path / "after.html")
    browser.open(page)
    choose(browser, "round", "1")
    choose(browser, "kept", "people")
    assert browser.run("return document.querySelectorAll('.card').length") == 3
    browser.run("[...document.querySelectorAll('.segments button')].find(one => one.textContent === 'Round 1').click()")
    until(lambda: "Corrections set 2 labels and rejected 1." in browser.run("return document.body.textContent"))
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
