"""Run, run again, change, rerun: what is done is never done twice, and the numbers never depend on how it was run."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.store.runs import find_run
from tests.flows.tiny import STAGES, computed_in_total, last, outcome, selftrain, start, states


def test_a_run_ends_with_a_table_and_says_why_it_stopped(copy: Path, recipe: str) -> None:
    done = selftrain(copy, "run", recipe, "--no-prefect")
    assert done.returncode == 0
    assert "pseudo-label accuracy" in done.stdout
    assert "stopped: 2 rounds done" in done.stdout
    assert "selftrain status tiny-" in done.stderr


def test_a_second_run_reuses_every_stage(copy: Path, finished: Path, recipe: str) -> None:
    done = selftrain(copy, "run", recipe, "--json")
    assert done.returncode == 0
    assert set(states(last(copy)).values()) == {"reused"}
    assert len(states(last(copy))) == STAGES
    assert outcome(last(copy))["digests"] == outcome(last(finished))["digests"]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert [line["round"] for line in answer["rounds"]] == [0, 1, 2]
    assert answer["stopped"] == "2 rounds done"


def test_a_run_with_nothing_new_refers_to_the_report_that_is_there_and_writes_its_own_when_asked(
    copy: Path, recipe: str
) -> None:
    before = last(copy)
    assert selftrain(copy, "run", recipe, "--no-prefect").returncode == 0
    own = last(copy).path / "report.html"
    assert (before.path / "report.html").exists()
    assert not own.exists()
    with closing(sqlite3.connect(copy / "mlflow.db")) as db, db:
        assert db.execute("SELECT value FROM tags WHERE key = 'selftrain.report'").fetchall() == [(before.id,)]
    assert selftrain(copy, "report", "last").stdout.strip() == str(own)
    assert last(copy).id in own.read_text()
    (before.path / "report.html").unlink()
    own.unlink()
    assert selftrain(copy, "run", recipe, "--no-prefect").returncode == 0
    assert (last(copy).path / "report.html").exists()  # no earlier run has one now


def test_without_prefect_the_same_is_found_and_given(copy: Path, finished: Path, recipe: str) -> None:
    assert selftrain(copy, "run", recipe, "--no-prefect").returncode == 0
    assert set(states(last(copy)).values()) == {"reused"}
    assert outcome(last(copy))["digests"] == outcome(last(finished))["digests"]


def test_a_changed_threshold_recomputes_from_there_on(copy: Path, recipe: str) -> None:
    assert selftrain(copy, "run", recipe, "--set", "rounds.2.select.threshold=0.2", "--no-prefect").returncode == 0
    by_state = states(last(copy))
    assert {name for name, state in by_state.items() if state == "computed"} == {
        "select-2",
        "student-2",
        "evaluate-2",
        "gate-2",
    }
    explained = selftrain(copy, "explain", "last", "select-2")
    assert "threshold: 0.1 → 0.2" in explained.stdout
    assert "reused" in selftrain(copy, "explain", "last", "teacher").stdout


def test_plan_says_what_would_run_before_anything_does(copy: Path, recipe: str) -> None:
    planned = selftrain(copy, "plan", recipe, "--set", "rounds.2.select.threshold=0.2", "--json")
    actions = {stage["name"]: stage["action"] for stage in json.loads(planned.stdout)["stages"]}
    assert actions["predict-2"] == "reuse"
    assert actions["select-2"] == "compute"
    assert actions["gate-2"] == "unknown"
    assert len(actions) == STAGES


def test_a_damaged_artifact_is_recomputed_to_the_same_bits(copy: Path, finished: Path, recipe: str) -> None:
    weights = Path(last(copy).stage("student-1").artifact) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(bytes(data))
    assert selftrain(copy, "run", recipe, "--no-prefect").returncode == 0
    assert [name for name, state in states(last(copy)).items() if state == "computed"] == ["student-1"]
    assert outcome(last(copy))["digests"] == outcome(last(finished))["digests"]


def test_rerun_computes_one_stage_and_what_depends_on_it(copy: Path, finished: Path) -> None:
    before = outcome(last(finished))
    done = selftrain(copy, "rerun", "last", "student-1")
    assert done.returncode == 0, done.stderr
    # It came out as before, bit for bit, so nothing after it had to run.
    assert [name for name, state in states(last(copy)).items() if state == "computed"] == ["student-1"]
    assert outcome(last(copy))["digests"] == before["digests"]
    changed = selftrain(copy, "rerun", "last", "student-2", "--set", "rounds.2.student.train.steps=31", "--no-prefect")
    assert changed.returncode == 0, changed.stderr
    computed = {name for name, state in states(last(copy)).items() if state == "computed"}
    assert computed == {"student-2", "evaluate-2", "gate-2"}
    for run in (last(finished), last(copy)):  # within Prefect and without, the recipe is kept as it was written
        rounds = load_recipe(run.path, ["round.select.threshold=0.3"]).config.rounds
        assert [one.select.threshold for one in rounds] == [0.3, 0.3]


def test_the_last_student_is_fine_tuned_on_larger_images_and_that_stage_can_be_rerun_alone(
    copy: Path, recipe: str
) -> None:
    larger = [f"rounds.2.finetune.{words}" for words in ("image_size=12", "train.steps=10", "train.batch_size=20")]
    done = selftrain(
        copy, "run", recipe, *(word for one in larger for word in ("--set", one)), "--no-prefect", "--json"
    )
    assert done.returncode == 0, done.stderr
    run = last(copy)
    by_state = states(run)
    new = {"dataset-2", "finetune-2", "evaluate-2", "gate-2"}
    assert {name for name, state in by_state.items() if state == "computed"} == new
    assert run.stage("evaluate-student-2").state == "reused"  # as the student was before: known
    model = run.rounds()[2].model
    assert model is not None
    assert json.loads(model.file("model.json").read_text())["image_size"] == 12
    evaluated, gate = (run.stage(name).key_parts["inputs"] for name in ("evaluate-2", "gate-2"))
    assert evaluated["model"] == model.digest
    assert gate["student"] == run.stage("evaluate-2").digest
    line = json.loads(done.stdout.splitlines()[-1])["rounds"][2]
    assert (line["model"], line["model_digest"]) == ("small_cnn 8 @ 12", model.digest)
    with (
        closing(sqlite3.connect(copy / "mlflow.db")) as db,
        db,
    ):  # the student before its fine-tuning is not the round's
        told = db.execute(
            "SELECT m.value FROM metrics m JOIN tags t ON m.run_uuid = t.run_uuid AND t.key = 'selftrain.run' "
            "WHERE t.value = ? AND m.key = 'validation_accuracy' AND m.step = 2",
            (run.id,),
        ).fetchall()
    assert told == [(line["validation_accuracy"],)]
    again = selftrain(copy, "rerun", "last", "finetune-2", "--no-prefect")
    assert again.returncode == 0, again.stderr
    assert {name for name, state in states(last(copy)).items() if state == "computed"} == {"finetune-2"}
    assert outcome(last(copy))["digests"] == outcome(run)["digests"]
    planned = selftrain(copy, "plan", str(last(copy).path), "--json")
    assert [stage["name"] for stage in json.loads(planned.stdout)["stages"]] == list(by_state)


def test_rerun_of_an_unknown_stage_names_the_nearest(copy: Path) -> None:
    done = selftrain(copy, "rerun", "last", "studnet-1")
    assert done.returncode == 2
    assert "Did you mean 'student-1'?" in done.stderr


@pytest.mark.slow
def test_three_runs_at_once_compute_each_stage_once(tmp_path: Path, finished: Path, recipe: str) -> None:
    racers = [start(tmp_path, "run", recipe, "--json") for _ in range(3)]
    ends = [racer.communicate(timeout=300) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], [end[1] for end in ends]
    assert computed_in_total(tmp_path) == STAGES
    runs = [json.loads(end[0].splitlines()[-1])["run"] for end in ends]
    assert all(outcome(find_run(tmp_path, run))["digests"] == outcome(last(finished))["digests"] for run in runs)


@pytest.mark.slow
def test_stages_at_the_same_time_make_what_one_after_the_other_makes(tmp_path: Path, recipe: str) -> None:
    words = ("run", recipe, "--set", "rounds=[]", "--set", "teacher.members=2", "--no-prefect")
    found = []
    for parallel in (1, 2):
        done = selftrain(tmp_path / str(parallel), *words, "--set", f"runtime.parallel={parallel}")
        assert done.returncode == 0, done.stderr
        found.append(last(tmp_path / str(parallel)))
    assert outcome(found[0]) == outcome(found[1])
    begins = [[run.stage(name).started for name in ("teacher", "teacher-member-2")] for run in found]
    seconds = [run.stage("teacher").seconds for run in found]
    assert begins[0][1] >= begins[0][0] + seconds[0]
    assert begins[1][1] < begins[1][0] + seconds[1]


def test_a_moved_workspace_still_answers(copy: Path, finished: Path, tmp_path: Path, recipe: str) -> None:
    moved = Path(shutil.move(copy, tmp_path / "elsewhere"))
    assert selftrain(moved, "run", recipe).returncode == 0
    assert set(states(last(moved)).values()) == {"reused"}
