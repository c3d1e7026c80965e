"""Runs side by side, and grids of runs: what `compare` says of them."""

from pathlib import Path

import pytest

from flows.compare import compare_methods, compare_runs
from flows.verbs import run
from ssl_tasks.runs import find_run
from tests.flows.tiny import computed_in_total, last, selftrain


def test_a_run_compared_with_its_teacher_alone_is_paired_on_the_same_images(copy: Path, recipe: str) -> None:
    whole = last(copy).id
    teacher = run(recipe, ["rounds=[]"], workspace=copy, prefect=False)
    table = compare_runs([teacher.id, whole], copy)
    lines = last(copy).summary["rounds"], find_rounds(copy, whole)
    assert table["test"].tolist() == [lines[0][0]["test_accuracy"], lines[1][table["round"][1]]["test_accuracy"]]
    assert table["difference"][1] == pytest.approx(table["test"][1] - table["test"][0])
    assert table["low"][1] <= table["difference"][1] <= table["high"][1]
    assert 0 <= table["p"][1] <= 1
    # The teacher was reused, but what it cost when it was computed still counts.
    assert 0 < table["seconds"][0] < table["seconds"][1]


def find_rounds(workspace: Path, run_id: str) -> list[dict[str, float]]:
    """The summary lines of a run."""
    rounds: list[dict[str, float]] = find_run(workspace, run_id).summary["rounds"]
    return rounds


def test_adding_a_seed_runs_only_the_new_cells(tmp_path: Path, recipe: str) -> None:
    few = ["teacher.train.steps=2", "teacher.train.evaluate_every=2"]
    methods = ["supervised", "fixmatch"]
    compare_methods(recipe, methods, [2], [0], few, tmp_path, prefect=False)
    before = computed_in_total(tmp_path)
    table = compare_methods(recipe, methods, [2], [0, 1], few, tmp_path, prefect=False)
    assert before == 1 + 2 * 2  # one data set for both methods; a model and its evaluation for each
    assert computed_in_total(tmp_path) == 2 * before
    assert table["method"].tolist() == methods
    assert table["seeds"].tolist() == [2, 2]
    assert table["test_std"].notna().all()
    assert table["difference"].notna().tolist() == [False, True]
    assert table["difference"][1] == pytest.approx(table["test"][1] - table["test"][0])


def test_runs_tested_on_other_images_are_shown_but_not_paired(copy: Path, recipe: str) -> None:
    whole = last(copy).id
    few = ["rounds=[]", "data.split.seed=1", "teacher.train.steps=2", "teacher.train.evaluate_every=2"]
    other = run(recipe, few, workspace=copy, prefect=False)
    shown = selftrain(copy, "compare", whole, other.id, "--markdown", "-")
    assert shown.returncode == 0, shown.stderr
    head, _, first, second = shown.stdout.splitlines()
    assert "McNemar p" in head
    assert "the reference" in first
    assert "tested on other images than the first" in second


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["last"], "expected two or more"),
        (["last", "nowhere"], "no run 'nowhere'"),
        (["quickstart", "--methods", "fixmach"], "fixmatch"),
        (["quickstart", "--seeds", "one"], "expected whole numbers"),
        (["a", "b", "--seeds", "1"], "expected one"),
    ],
)
def test_bad_input_gets_one_sentence(copy: Path, words: list[str], sentence: str) -> None:
    done = selftrain(copy, "compare", *words)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
