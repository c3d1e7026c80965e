"""docs/fidelity.md has a line for every method, and each test that it names is there."""

import re
from pathlib import Path

from selftrain.ssl_tasks.methods.table import METHODS

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| `(\w+)` \|(.*)\|$", (ROOT / "docs" / "fidelity.md").read_text(), re.MULTILINE)


def test_every_method_has_one_line_that_says_same_or_how_it_differs() -> None:
    assert sorted(name for name, _ in ROWS) == sorted(METHODS)
    for name, row in ROWS:
        cells = row.split(" | ")
        assert len(cells) == 5, name
        assert all("same" in cell or "differs" in cell for cell in cells[:4]), name


def test_the_named_tests_are_there() -> None:
    for name, row in ROWS:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, name
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / "methods" / file).read_text(), f"{file}::{test}"
