"""Runs side by side, and grids of runs: what `compare` says of them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from selftrain.flows.actions.compare import best_round, compare_methods, compare_runs
from selftrain.flows.actions.verbs import run
from selftrain.ssl_tasks.errors import DamagedArtifact
from selftrain.ssl_tasks.store.runs import Run, find_run
from selftrain.ssl_tasks.tracking.client import connect, default_uri
from selftrain.ssl_tasks.training.launch import free_port
from tests.flows.claims import rows, unended_in_prefect
from tests.flows.tiny import computed_in_total, environment, last, selftrain
from tests.local_servers import prefect_server
from tests.warm import Command, call


def test_a_run_compared_with_its_teacher_alone_is_paired_on_the_same_images(copy: Path, recipe: str) -> None:
    whole = last(copy).id
    teacher = run(recipe, ["rounds=[]"], workspace=copy, prefect=False)
    table = compare_runs([teacher.id, whole], copy).table
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


def test_a_changed_evaluation_is_named_and_not_compared(copy: Path) -> None:
    whole = last(copy)
    evaluation = whole.rounds()[best_round(whole)].evaluation
    assert evaluation is not None
    table = next(evaluation.path.rglob("*.parquet"))
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    with pytest.raises(DamagedArtifact, match=f"{table.name} has changed since"):
        compare_runs([whole.id, whole.id], copy)


def compare(recipe: str, methods: list[str], seeds: list[int], workspace: Path) -> None:
    """Leaves the comparison of two steps of each method in a file."""
    few = ["teacher.train.steps=2", "teacher.train.evaluate_every=2"]
    found = compare_methods(recipe, methods, [2], seeds, few, workspace, prefect=False)
    (workspace / "found").write_bytes(pickle.dumps(found))


def compared(recipe: str, methods: list[str], seeds: list[int], workspace: Path) -> Any:
    """The same, made by a process of its own."""
    process = call(compare, recipe, methods, seeds, workspace, spares=8)
    said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return pickle.loads((workspace / "found").read_bytes())


def test_adding_a_seed_runs_only_the_new_cells(tmp_path: Path, recipe: str) -> None:
    methods = ["supervised", "fixmatch"]
    compared(recipe, methods, [0], tmp_path)
    before = computed_in_total(tmp_path)
    found = compared(recipe, methods, [0, 1, 1], tmp_path)
    table = found.table
    assert before == 1 + 2 * 2  # one data set for both methods; a model and its evaluation for each
    assert computed_in_total(tmp_path) == 2 * before
    assert table["method"].tolist() == methods
    assert table["seeds"].tolist() == [2, 2]
    assert table["test_std"].notna().all()
    assert table["difference"].notna().tolist() == [False, True]
    assert table["difference"][1] == pytest.approx(table["test"][1] - table["test"][0])
    assert (table["gains"][1] - table["losses"][1]) / table["images"][1] == pytest.approx(table["difference"][1])
    for points, mean in zip(found.points, table["test"], strict=True):
        assert [point.seed for point in points] == [0, 1]
        assert np.mean([point.test for point in points]) == pytest.approx(mean)


ON_A_WORKER = """
import json, sys
from selftrain.flows.actions.compare import run_cell
run_cell(*json.loads(sys.argv[1]))
"""
CELLS = """
    select parent.name, child.name, child.state_name, parent.state_type from flow_run child
    join task_run on child.parent_task_run_id = task_run.id join flow_run parent on task_run.flow_run_id = parent.id
    order by child.name
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_prefect_a_comparison_is_one_run_with_its_cells_as_children(
    fresh: Path, prefect_home: Path, recipe: str
) -> None:
    workspace, server = fresh, prefect_home
    few = ["--set", "teacher.train.steps=2", "--set", "teacher.train.evaluate_every=2"]
    grid = ["compare", recipe, "--methods", "supervised,fixmatch", "--labels", "2", *few]
    embedded = selftrain(workspace, *grid, "--seeds", "0")
    assert embedded.returncode == 0, embedded.stderr
    first = "compare tiny: supervised, fixmatch · 2 labels · seed 0"
    assert rows(workspace / "prefect" / "prefect.db", CELLS) == [
        (first, "tiny-fixmatch-2-seed0", "Completed", "COMPLETED"),
        (first, "tiny-supervised-2-seed0", "Completed", "COMPLETED"),
    ]
    computed = computed_in_total(workspace)
    with prefect_server(server, free_port()) as url:
        told = selftrain(workspace, *grid, "--seeds", "0,1", PREFECT_API_URL=url)
        assert told.returncode == 0, told.stderr
        cells = rows(server / "prefect.db", CELLS)
        elsewhere(workspace, find_run(workspace, "tiny-fixmatch-2-seed0"), server / "prefect.db", url)
    assert computed_in_total(workspace) == 2 * computed
    assert cells == [
        (f"{first}, 1", "tiny-fixmatch-2-seed0", "NothingNew", "COMPLETED"),
        (f"{first}, 1", "tiny-fixmatch-2-seed1", "Completed", "COMPLETED"),
        (f"{first}, 1", "tiny-supervised-2-seed0", "NothingNew", "COMPLETED"),
        (f"{first}, 1", "tiny-supervised-2-seed1", "Completed", "COMPLETED"),
    ]
    assert len(rows(server / "prefect.db", CELLS)) == len(cells) + 1, "the cell of another machine is a child too"
    ((table,),) = rows(server / "prefect.db", "select data from artifact where key = 'tiny-comparison'")
    assert "| supervised | 2 | 2 |" in json.loads(table)
    assert unended_in_prefect(server / "prefect.db") == []


def elsewhere(workspace: Path, cell: Run, database: Path, url: str) -> None:
    """Runs a cell of the comparison as a Ray worker does, in a process of its own."""
    ((parent,),) = rows(database, "select id from flow_run where name like 'compare %'")
    (workspace / "mark").touch()
    shared = {"workspace": str(workspace), "mark": "mark", "prefect": True, "parent": parent}
    asked = json.dumps([{**shared, "environment": {"PREFECT_API_URL": url}}, cell.config.model_dump(mode="json")])
    worker = Command(["-c", ON_A_WORKER, asked], environment())
    said = worker.communicate(timeout=600)
    assert worker.returncode == 0, said


def test_a_comparison_is_kept_and_logged_once_however_often_it_is_made(copy: Path, tmp_path: Path) -> None:
    page, lines = tmp_path / "page.html", tmp_path / "lines.json"
    for _ in range(2):
        done = selftrain(copy, "compare", "last", "tiny", "--html", str(page), "--json", str(lines))
        assert done.returncode == 0, done.stderr
    (kept,) = (copy / "comparisons").iterdir()
    assert str(kept) in done.stderr
    assert (kept / "comparison.html").read_text() == page.read_text()
    assert json.loads((kept / "comparison.json").read_text()) == json.loads(lines.read_text())
    shown = [row["test"] for row in json.loads(lines.read_text())]
    assert pd.read_csv(kept / "comparison.csv")["test"].tolist() == pytest.approx(shown, abs=1e-9)  # JSON has 10 digits
    client = connect(default_uri(copy), copy)
    experiment = client.get_experiment_by_name("selftrain")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id], "tags.`selftrain.comparison` LIKE '%'")
    names = {"comparison.json", "comparison.csv", "comparison.md", "comparison.html"}
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == names
    assert logged.info.status == "FINISHED"
    assert last(copy).id in logged.data.params["runs"]


def test_runs_tested_on_other_images_are_shown_but_not_paired(copy: Path, recipe: str) -> None:
    whole = last(copy).id
    few = ["rounds=[]", "data.split.seed=1", "teacher.train.steps=2", "teacher.train.evaluate_every=2"]
    other = run(recipe, few, workspace=copy, prefect=False)
    shown = selftrain(copy, "compare", whole, other.id, "--markdown", "-")
    assert shown.returncode == 0, shown.stderr
    head, _, first, second = shown.stdout.splitlines()
    assert "McNemar p" in head
    assert "the reference" in first
    assert "tested on different images than the first run" in second


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["last"], "expected two or more"),
        (["last", "nowhere"], "no run 'nowhere'"),
        (["quickstart", "--methods", "fixmach"], "fixmatch"),
        (["quickstart", "--seeds", "one"], "expected whole numbers"),
        (["a", "b", "--seeds", "1"], "expected one"),
        (["last", "last", "--html", "."], "it is a folder"),
    ],
)
def test_bad_input_gets_one_sentence(copy: Path, words: list[str], sentence: str) -> None:
    done = selftrain(copy, "compare", *words)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
