"""The report in a real browser: quiet, alone, usable, and what is clicked is what is downloaded."""

import csv
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.pseudo_labels.corrections import REJECT, LabelWords, read_rows
from selftrain.ssl_tasks.report.data import RoundPage
from selftrain.ssl_tasks.report.page import render, report_data
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.runs import Run
from tests.report.conftest import Browser
from tests.report.hostile import CLASSES

pytestmark = pytest.mark.browser

SHOWN = "return [...document.querySelectorAll('.card')].map(card => ({...card.dataset}))"
STATUS = "return document.querySelector('#gallery-status').textContent"
CODES = {"Escape": 27}  # of keys that the browser itself listens to
OVERFLOW = "return document.documentElement.scrollWidth - innerWidth"


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The report, freshly loaded."""
    browser.open(page)
    return browser


def choose(browser: Browser, name: str, value: object) -> None:
    """Sets a filter as a person does."""
    browser.run(
        """const field = document.querySelector(`[name=${arguments[0]}]`);
        if (field.type === 'checkbox') { if (field.checked !== arguments[1]) field.click(); return; }
        field.value = arguments[1];
        field.dispatchEvent(new Event('change', {bubbles: true}));""",
        name,
        value,
    )


def press(browser: Browser, key: str) -> None:
    """A key on whatever has the focus."""
    for kind in ("keyDown", "keyUp"):
        event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": CODES.get(key, 0)}
        browser.driver.execute_cdp_cmd("Input.dispatchKeyEvent", event)


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something that the browser does in its own time."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_the_page_loads_without_errors_or_requests(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark)
    until(lambda: browser.run("return document.querySelectorAll('.plot svg').length") >= 6)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run(OVERFLOW) <= 0


def test_names_from_data_are_shown_as_text_and_never_run(opened: Browser) -> None:
    assert opened.run("return window.hacked ?? null") is None
    assert opened.run("return document.querySelectorAll('main b, main script, main img').length") == opened.run(
        "return document.querySelectorAll('.node b').length"
    )
    text = opened.run("return document.querySelector('main').textContent")
    assert CLASSES[0] in text
    assert CLASSES[1] in text
    assert "\u202e" not in text  # what turns the writing direction is spelled out
    assert "\\u202e" in text


def test_a_report_in_mid_run_says_what_is_known_so_far(browser: Browser, run: Run, tmp_path: Path) -> None:
    data = report_data(run)
    teacher, student, _ = data.rounds
    computing = replace(data.stages[0], name="student-1", state="running")
    untrained = replace(student, architecture="", validation=None, test=None)
    page = tmp_path / "mid.html"

    def lede(state: str, *rounds: RoundPage, best: int | None = 0) -> str:
        now = {**data.run, "state": state}
        stages = (*data.stages, computing) if state == "running" else data.stages
        page.write_text(render(replace(data, run=now, rounds=rounds, stages=stages, best_round=best)))
        browser.open(page)
        return browser.run("return document.querySelector('.lede').textContent")

    begun = "The run is not finished; student-1 is running. So far: "
    for rounds in ((teacher,), (teacher, untrained)):
        said = lede("running", *rounds)
        assert said.startswith(f"{begun}One model, trained from 12 labelled images: test accuracy ")
        assert said.endswith("No student has been evaluated yet.")
    assert lede("running", best=None) == begun + "There is no trained model yet."
    unmeasured = replace(teacher, validation=None, test=None)
    assert lede("running", unmeasured, best=None).endswith("1 model trained on 12 labelled images; not evaluated yet.")
    said = lede("running", teacher, student)
    assert "no student is better than the teacher on validation (1 student evaluated)" in said
    assert "No student has been evaluated." in lede("failed", teacher, untrained)
    assert "no student was better than the teacher" in lede("done", teacher, student)


def test_dark_mode_is_dark_and_has_contrast(browser: Browser, page: Path) -> None:
    script = """const style = getComputedStyle(document.body);
        return [style.backgroundColor, style.color].map(text => text.match(/\\d+/g).slice(0, 3).map(Number))"""
    lightness = []
    for dark in (False, True):
        browser.open(page, dark=dark)
        paper, ink = (sum(color) / 3 for color in browser.run(script))
        lightness.append(paper)
        assert abs(paper - ink) > 150
    assert lightness[0] > 200 > 60 > lightness[1]


def test_each_filter_leaves_the_matching_pictures(opened: Browser) -> None:
    everything = opened.run(STATUS)
    choose(opened, "label", "1")
    shown = opened.run(SHOWN)
    assert shown
    assert {one["label"] for one in shown} == {sorted(CLASSES)[1]}
    choose(opened, "kept", "left")
    assert all(
        "rejected" in text
        for text in opened.run("return [...document.querySelectorAll('.facts')].map(e => e.textContent)")
    )
    choose(opened, "kept", "")
    choose(opened, "label", "")
    choose(opened, "flipped", True)
    assert all(
        "was" in text for text in opened.run("return [...document.querySelectorAll('.facts')].map(e => e.textContent)")
    )
    choose(opened, "flipped", False)
    assert opened.run(STATUS) == everything


def test_rounds_show_their_own_labels(opened: Browser) -> None:
    choose(opened, "sort", "id")
    second = opened.run(SHOWN)
    choose(opened, "round", "1")
    first = opened.run(SHOWN)
    assert [one["sample"] for one in first] == [one["sample"] for one in second]
    assert [one["confidence"] for one in first] != [one["confidence"] for one in second]


def test_each_order_sorts_the_pictures(opened: Browser) -> None:
    for order, sign in (("sure", -1), ("unsure", 1)):
        choose(opened, "sort", order)
        found = [sign * float(one["confidence"]) for one in opened.run(SHOWN)]
        assert found == sorted(found)


def test_a_click_on_a_header_sorts_the_table(opened: Browser) -> None:
    script = """const table = document.querySelector('#summary table');
        [...table.querySelectorAll('thead button')].find(one => one.textContent === 'Test').click();
        return [...table.querySelectorAll('tbody tr')].map(row => parseFloat(row.children[1].textContent))"""
    down, up = opened.run(script), opened.run(script)
    assert down == sorted(down, reverse=True)
    assert up == down[::-1] or sorted(up) == up
    assert (
        opened.run("return document.querySelector('#summary th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    )


def test_the_table_of_rounds_has_the_medians_that_a_recipe_asks_for(opened: Browser, run: Run) -> None:
    heads = [one.text for one in opened.driver.find_elements("css selector", "th")]
    assert [name for name in heads if name.startswith("Median")] == ["Median test", "Median validation"]
    cells = [one.text for one in opened.driver.find_elements("css selector", "td")]
    for one in run.rounds():
        assert one.model is not None
        assert f"{100 * one.model.summary['median_test_accuracy']:.1f}%" in cells


def test_the_gallery_is_used_with_keys_alone(opened: Browser) -> None:
    opened.run("document.querySelector('.card button').focus()")
    first = opened.run(SHOWN)[0]["sample"]
    press(opened, "ArrowRight")
    focused = "return document.activeElement.closest('.card').dataset.sample"
    second = opened.run(focused)
    assert second == opened.run(SHOWN)[1]["sample"] != first
    press(opened, "y")
    assert opened.run("return document.querySelector('.card.marked').dataset.sample") == second
    press(opened, "x")
    press(opened, "PageDown")
    assert "page 2" in opened.run(STATUS)
    assert opened.run(focused) == opened.run(SHOWN)[0]["sample"]
    press(opened, "PageUp")
    assert opened.run("return document.querySelector('.card.marked [aria-pressed=true]').dataset.kind") == "wrong"
    assert opened.run("return document.querySelectorAll('.card button[tabindex=\"0\"]').length") == 4


def test_an_enlarged_picture_shows_the_prediction_of_every_round(opened: Browser) -> None:
    opened.run("document.querySelector('.card .picture').click()")
    assert opened.run("return document.querySelectorAll('dialog[open] tbody tr').length") == 2
    press(opened, "Escape")
    until(lambda: opened.run("return document.querySelector('dialog') === null"))


def test_lineage_shows_the_digest_of_a_stage(opened: Browser, run: Run) -> None:
    opened.run("document.querySelector('[data-stage=student-1]').click()")
    text = opened.run("return document.querySelector('.panel').textContent")
    assert run.stage("student-1").digest in text
    assert "selection: select-1" in text
    assert opened.run("return document.querySelectorAll('.edge.on').length") == 3  # select-1, predict-2, evaluate-1


def mark_three(browser: Browser) -> dict[str, str]:
    """Clicks right, wrong and another class; returns what the CSV should say."""
    choose(browser, "kept", "kept")
    choose(browser, "sort", "unsure")
    right, wrong, other = browser.run(SHOWN)[:3]
    card = "document.querySelectorAll('.card')[arguments[0]]"
    browser.run(f"{card}.querySelector('[data-kind=right]').click()", 0)
    browser.run(f"{card}.querySelector('[data-kind=wrong]').click()", 1)
    browser.run(f"{card}.querySelector('[data-kind=other]').click()", 2)
    names = sorted(CLASSES)
    another = next(name for name in names if name != other["label"])
    browser.run(
        """const field = document.querySelector('#other-class');
        field.value = arguments[0]; field.dispatchEvent(new Event('change'));""",
        str(names.index(another)),
    )
    return {right["sample"]: right["label"], wrong["sample"]: REJECT, other["sample"]: another}


def download(browser: Browser) -> Path:
    """Clicks the button and waits for the file."""
    target = browser.downloads / "corrections.csv"
    target.unlink(missing_ok=True)
    browser.run("document.querySelector('#download').click()")
    until(target.exists)
    return target


def test_corrections_are_downloaded_and_change_the_selection(opened: Browser, run: Run, tmp_path: Path) -> None:
    expected = mark_three(opened)
    text = "return document.querySelector('.basket').textContent"
    assert "3 corrections: 1 right, 1 wrong, 1 another class" in opened.run(text)
    path = download(opened)
    with duckdb.connect() as connection:
        assert {sample: label for sample, label, _ in read_rows(connection, path)} == expected
    artifact = select_again(run, path, tmp_path)
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT sample_id, label, source FROM read_parquet($1)", [str(artifact.file("selection.parquet"))]
        ).fetchall()
    chosen = {sample: (label, source) for sample, label, source in rows}
    names = sorted(CLASSES)
    for sample, label in expected.items():
        assert chosen.get(sample) == (None if label == REJECT else (names.index(label), "override"))


def test_odd_names_come_back_from_a_download_and_no_cell_is_a_formula(
    browser: Browser, run: Run, tmp_path: Path
) -> None:
    classes = ("=cmd|' calc'!A0", "reject", " lead ")
    data = report_data(run)
    heads = itertools.cycle(["a\rb", "=1+1", "'=x", "\t,", "class:"])
    samples = tuple(replace(one, id=f"{next(heads)}{at}") for at, one in enumerate(data.gallery.samples))
    page = tmp_path / "odd.html"
    page.write_text(render(replace(data, classes=classes, gallery=replace(data.gallery, samples=samples))))
    browser.open(page)
    expected: dict[str, int | None] = {}
    for at, one in enumerate(browser.run(SHOWN)[:10]):
        kind = "wrong" if at % 4 == 3 else "right"
        browser.run(f"document.querySelectorAll('.card')[{at}].querySelector('[data-kind={kind}]').click()")
        expected[one["sample"]] = None if kind == "wrong" else classes.index(one["label"])
    path = download(browser)
    with duckdb.connect() as connection:
        said = {sample: LabelWords(classes).meaning(text) for sample, text, _ in read_rows(connection, path)}
    assert said == expected
    with path.open(newline="") as file:
        assert not [
            cell for row in csv.reader(file) for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        ]


def select_again(run: Run, corrections: Path, workspace: Path) -> Artifact:
    """The last round's selection with people's corrections."""
    last = run.rounds()[-1]
    assert last.predictions is not None
    assert run.dataset is not None
    inputs = {"dataset": run.dataset, "predictions": last.predictions}
    settings = SelectSettings(threshold=0.5, overrides=corrections)
    return execute(
        Request("select", "select", 1, "selftrain.ssl_tasks.pseudo_labels.select:select", settings, inputs),
        workspace,
    ).artifact


def test_a_mark_is_taken_back_by_a_second_click(opened: Browser) -> None:
    for _ in range(2):
        opened.run("document.querySelector('.card [data-kind=right]').click()")
    assert opened.run("return document.querySelectorAll('.card.marked').length") == 0
    assert opened.run("return document.querySelector('#download').disabled")


def test_the_text_area_holds_the_same_as_the_download(opened: Browser) -> None:
    mark_three(opened)
    opened.run(
        "[...document.querySelectorAll('.basket button')].find(one => one.textContent === 'Show as text').click()"
    )
    assert opened.run("return document.querySelector('textarea').value").encode() == download(opened).read_bytes()


def test_works_in_mlflow_s_sandboxed_frame(browser: Browser, page: Path, tmp_path: Path) -> None:
    """As on MLflow's artifact page: scripts alone are allowed, so no storage, no downloads, no clipboard."""
    frame = tmp_path / "frame.html"
    source = json.dumps(page.read_text()).replace("<", "\\u003c")
    frame.write_text(
        f"<!doctype html><iframe sandbox='allow-scripts' style='width:1200px;height:900px'></iframe>"
        f"<script>document.querySelector('iframe').srcdoc = {source}</script>"
    )
    browser.open(frame)
    browser.driver.switch_to.frame(0)
    try:
        until(lambda: browser.run("return document.querySelectorAll('.card').length") > 0)
        mark_three(browser)
        browser.run("[...document.querySelectorAll('.basket button')].find(one => one.textContent === 'Copy').click()")
        until(lambda: browser.run("return /Copied|copy it/.test(document.querySelector('.basket').textContent)"))
        assert browser.run("return document.querySelector('textarea').value.split('\\n').length") >= 4
    finally:
        browser.driver.switch_to.default_content()
    assert browser.complaints() == []
