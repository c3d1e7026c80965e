"""The page of a comparison in a real browser: quiet, alone, usable, and safe against names."""

from pathlib import Path

import pandas as pd
import pytest

from selftrain.ssl_tasks.report.page import Comparison, Point, render_comparison
from tests.report.conftest import Browser
from tests.report.hostile import CLASSES, PREFIXES
from tests.report.test_browser import OVERFLOW, until

pytestmark = pytest.mark.browser


def accuracies(budget: int, method: int) -> list[float]:
    """Of three seeds."""
    return [0.6 + 0.02 * budget + 0.1 * method + 0.01 * seed for seed in range(3)]


def grid() -> Comparison:
    """Three methods of hostile names, two budgets, three seeds."""
    rows, points = [], []
    for budget in (2, 5):
        for number, method in enumerate(CLASSES):
            found = pd.Series(accuracies(budget, number))
            line = {"method": method, "labels": budget, "seeds": 3, "seconds": 4.0 * 9**number}
            for split in ("validation", "test"):
                line |= {split: found.mean(), f"{split}_std": found.std()}
            other = found.mean() - accuracies(budget, 0)[1]
            paired = {"images": 900, "difference": other, "low": other - 0.15, "high": other + 0.15}
            paired |= {"gains": 90 * number, "losses": 3, "p": 0.0001}
            rows.append({**line, **(paired if number else dict.fromkeys(paired))})
            points.append(tuple(Point(f"{PREFIXES[0]}{seed}", seed, one, one, 4.0) for seed, one in enumerate(found)))
    return Comparison(
        "methods", CLASSES[0], {"recipe": CLASSES[1], PREFIXES[3]: "a"}, "test", pd.DataFrame(rows), tuple(points)
    )


def two_runs() -> Comparison:
    """A run, and one that cannot be paired with it."""
    line = {"round": 2, "validation": 0.9, "validation_low": 0.85, "validation_high": 0.94, "test": None}
    line |= {"test_low": None, "test_high": None, "seconds": 60.0}
    paired = dict.fromkeys(("images", "difference", "low", "high", "gains", "losses", "p"))
    rows = [
        {"run": f"a-20260101-000000-abc{number}", **line, **paired, "note": note}
        for number, note in enumerate(("the reference", CLASSES[1]))
    ]
    points = tuple((Point(str(row["run"]), None, 0.9, None, 60.0),) for row in rows)
    return Comparison("runs", "a", {"runs": "both"}, "validation", pd.DataFrame(rows), points)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize(("comparison", "charts"), [(grid(), 3), (two_runs(), 2)], ids=["grid", "runs"])
def test_the_page_loads_without_errors_or_requests(
    browser: Browser, tmp_path: Path, comparison: Comparison, charts: int, width: int, dark: bool
) -> None:
    page = tmp_path / "comparison.html"
    page.write_text(render_comparison(comparison))
    browser.open(page, width, dark)
    until(lambda: browser.run("return document.querySelectorAll('.plot svg').length") == charts)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run(OVERFLOW) <= 0
    assert browser.run("return window.hacked ?? null") is None
    assert browser.run("return document.querySelectorAll('main b, main script, main img').length") == 0


def test_every_seed_is_a_dot_and_the_table_sorts(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    page.write_text(render_comparison(grid()))
    browser.open(page)
    until(lambda: browser.run("return document.querySelectorAll('.plot svg').length") == 3)
    dots = "return document.querySelector('.plot svg').querySelectorAll('[aria-label=dot] circle').length"
    assert browser.run(dots) == 18
    text = browser.run("return document.querySelector('main').textContent")
    assert CLASSES[0] in text
    assert "\\u202e" in text
    assert "\u202e" not in text
    script = """const table = document.querySelector('#comparison table');
        [...table.querySelectorAll('thead button')].find(one => one.textContent === 'Time').click();
        return [...table.querySelectorAll('tbody tr')].map(row => row.children[0].textContent)"""
    assert browser.run(script) == ["3", "6", "2", "5", "1", "4"]
    assert browser.complaints() == []
