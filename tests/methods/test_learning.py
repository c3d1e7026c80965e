"""Every method learns: on digits with five labels a class it beats supervised training on the same labels.

One seed each; the table of three is `benchmarks/methods_digits.py`. Settings are the recipes in `configs/digits/`.
"""

from pathlib import Path

import pytest

from benchmarks.methods_digits import SUPERVISED, baseline, digits_error
from tests.methods.trial import METHOD_NAMES

SEED, THREADS = 0, 1


@pytest.fixture(scope="module")
def workspace(shared_folder: Path) -> Path:
    """One store for all tests in all processes, so that the data set is built and each baseline trained once."""
    return shared_folder / "learning"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHOD_NAMES if name != "supervised"])
def test_it_beats_supervised_training_on_the_same_labels(name: str, workspace: Path) -> None:
    supervised = digits_error("digits/supervised", SEED, workspace, THREADS, SUPERVISED[baseline(name)])
    assert digits_error(f"digits/{name}", SEED, workspace, THREADS) < supervised


@pytest.mark.slow
def test_more_labels_are_better_and_wrong_ones_worse(workspace: Path) -> None:
    few, full, wrong = (
        digits_error("digits/supervised", SEED, workspace, THREADS, overrides) for overrides in SUPERVISED.values()
    )
    assert full < few
    assert full < wrong
