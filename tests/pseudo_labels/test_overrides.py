"""Corrections take precedence, are checked, and are carried to later rounds."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selftrain.flows.rounds.stages import select_request
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.pseudo_labels.corrections import read_rows
from selftrain.ssl_tasks.pseudo_labels.engine import open_duckdb
from selftrain.ssl_tasks.settings.pseudo_labels import CorrectedSettings, SelectSettings
from selftrain.ssl_tasks.store.artifacts import digest_file
from tests.pseudo_labels.tables import Row, Tables, run_select, selected, stats

ROWS = [Row(f"s{number}", number % 3, 0.9) for number in range(9)] + [Row("dark", None, error="truncated")]


def csv(folder: Path, *lines: str, name: str = "people.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(["sample_id,label", *lines]) + "\n")
    return path


def tables(folder: Path) -> Tables:
    return Tables(folder / "t", ROWS, labeled=[("l0", 1, "c-l0")], held_out=[("t0", "test", "c-s8")])


def test_a_correction_wins_over_the_model_and_a_rejection_over_both(tmp_path: Path) -> None:
    path = csv(tmp_path, "s0,class-2", "s1,reject")
    artifact = run_select(tables(tmp_path), tmp_path / "out", SelectSettings(overrides=path, balance="none"))
    found = {row["sample_id"]: row for row in selected(artifact)}
    assert "s1" not in found
    assert (found["s0"]["label"], found["s0"]["source"], found["s0"]["position"]) == (2, "override", 0)
    assert (found["s0"]["rank_in_class"], found["s0"]["confidence"]) == (1, 1.0)
    assert found["s0"]["probs"] == [0.0, 0.0, 1.0]
    assert found["s2"]["source"] == "model"
    assert (stats(artifact)["overrides"], stats(artifact)["rejected"]) == (1, 1)


def test_a_correction_is_kept_however_unsure_the_model_is_and_however_few_are_wanted(tmp_path: Path) -> None:
    path = csv(tmp_path, "s0,class-2", "s1,class-2", "s3,class-2")
    wanted = SelectSettings(overrides=path, threshold=0.99, per_class=2)
    found = selected(run_select(tables(tmp_path), tmp_path / "out", wanted))
    assert [(row["sample_id"], row["label"], row["copies"]) for row in found] == [
        ("s0", 2, 1),
        ("s1", 2, 1),
        ("s3", 2, 1),
    ]


@pytest.mark.parametrize("scheme", ["exact", "bernoulli"])
def test_corrections_count_towards_their_class(tmp_path: Path, scheme: str) -> None:
    path = csv(tmp_path, "s0,class-1")
    wanted = SelectSettings.model_validate({"overrides": path, "per_class": 4, "scheme": scheme})
    found = selected(run_select(tables(tmp_path), tmp_path / "out", wanted))
    assert sum(row["copies"] for row in found if row["label"] == 1) == 4
    assert "s0" in {row["sample_id"] for row in found}


def test_corrections_carry_over_to_later_rounds_until_they_are_changed(tmp_path: Path) -> None:
    first = csv(tmp_path, "s0,class-2", "s1,reject")
    said = digest_file(first)
    one = run_select(tables(tmp_path), tmp_path / "one", SelectSettings(overrides=first))
    two = run_select(tables(tmp_path), tmp_path / "two", SelectSettings(), previous=one)
    assert pq.read_table(two.file("overrides.parquet")).to_pylist() == [
        {"sample_id": "s0", "label": 2, "origin": said},
        {"sample_id": "s1", "label": None, "origin": said},
    ]
    assert {row["sample_id"] for row in selected(two) if row["source"] == "override"} == {"s0"}
    later = csv(tmp_path, "s1,class-0")
    three = run_select(tables(tmp_path), tmp_path / "three", SelectSettings(overrides=later), previous=two)
    kept = {row["sample_id"]: row["label"] for row in pq.read_table(three.file("overrides.parquet")).to_pylist()}
    assert kept == {"s0": 2, "s1": 0}


def test_outdated_corrections_of_earlier_rounds_are_counted_not_refused(tmp_path: Path) -> None:
    one = run_select(tables(tmp_path), tmp_path / "one", SelectSettings(overrides=csv(tmp_path, "s0,class-2")))
    other = Tables(tmp_path / "other", ROWS[1:])
    two = run_select(other, tmp_path / "two", SelectSettings(), previous=one)
    assert stats(two)["forgotten_overrides"] == 1
    assert not two.file("overrides.parquet").exists()


def test_corrections_of_the_workspace_and_of_the_recipe_both_count_and_the_workspace_wins(tmp_path: Path) -> None:
    team = csv(tmp_path, "s0,class-2", "s1,reject")
    applied = csv(tmp_path, "s1,class-0", "s2,class-1", name="applied.csv")
    both = CorrectedSettings(overrides=team, corrections=applied)
    artifact = run_select(tables(tmp_path), tmp_path / "out", both)
    assert pq.read_table(artifact.file("overrides.parquet")).to_pylist() == [
        {"sample_id": "s0", "label": 2, "origin": digest_file(team)},
        {"sample_id": "s1", "label": 0, "origin": digest_file(applied)},
        {"sample_id": "s2", "label": 1, "origin": digest_file(applied)},
    ]


def test_the_key_includes_both_files_of_corrections(tmp_path: Path) -> None:
    team, applied = csv(tmp_path, "s0,class-2"), csv(tmp_path, "s1,class-0", name="applied.csv")
    dataset, predictions = tables(tmp_path).write()

    def depends(overrides: Path | None, corrections: Path | None) -> dict[str, str]:
        request = select_request(
            "select-1", SelectSettings(overrides=overrides), dataset, predictions, None, corrections
        )
        assert request.section.identity() == SelectSettings().identity()
        return {name: value for name, value in request.key_parts()["inputs"].items() if name not in always}

    always = {*dataset.parts, "predictions"}
    assert depends(None, None) == {}
    assert depends(team, None) == {"overrides": digest_file(team)}
    assert depends(None, applied) == {"overrides": digest_file(applied)}
    assert depends(team, applied) == {"overrides": digest_file(team), "corrections": digest_file(applied)}


def test_outdated_corrections_are_ignored_in_the_workspace_and_refused_in_the_recipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    applied = csv(tmp_path, "gone,class-0", "l0,class-0", "s1,class-9", "s0,class-2", name="applied.csv")
    artifact = run_select(tables(tmp_path), tmp_path / "out", CorrectedSettings(corrections=applied))
    assert {row["sample_id"] for row in selected(artifact) if row["source"] == "override"} == {"s0"}
    assert (stats(artifact)["overrides"], stats(artifact)["forgotten_overrides"]) == (1, 3)
    for said in ("3 corrections", "not in the data: gone", "labelled already", "no such class: s1"):
        assert said in caplog.text
    both = CorrectedSettings(overrides=csv(tmp_path, "gone,class-0"), corrections=applied)
    with pytest.raises(DataError, match="names samples that cannot be corrected"):
        run_select(tables(tmp_path), tmp_path / "both", both)


def test_all_samples_that_cannot_be_corrected_are_named_together(tmp_path: Path) -> None:
    path = csv(tmp_path, "nobody,class-0", "l0,class-0", "t0,class-0", "s8,class-0", "dark,class-0", "s0,class-0")
    with pytest.raises(DataError) as failure:
        run_select(tables(tmp_path), tmp_path / "out", SelectSettings(overrides=path))
    message = str(failure.value)
    assert "not in the data: nobody" in message
    assert "labelled already: correct it in the source: l0" in message
    assert "of validation or test, or the same image as one of these: s8, t0" in message
    assert "unreadable: truncated: dark" in message
    assert "s0" not in message


def test_unknown_classes_are_named_with_the_nearest_known(tmp_path: Path) -> None:
    path = csv(tmp_path, "s0,clas-1", "s1,7")
    with pytest.raises(DataError, match="2 unknown labels") as failure:
        run_select(tables(tmp_path), tmp_path / "out", SelectSettings(overrides=path))
    assert "'clas-1': Did you mean 'class-1'?" in str(failure.value)
    assert "'7'" in str(failure.value)


def test_contradictory_corrections_are_refused_and_duplicates_merged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two things of s0"):
        run_select(tables(tmp_path), tmp_path / "a", SelectSettings(overrides=csv(tmp_path, "s0,class-1", "s0,reject")))
    same = csv(tmp_path, "s0,class-1", "s0,class-1")
    assert stats(run_select(tables(tmp_path), tmp_path / "b", SelectSettings(overrides=same)))["overrides"] == 1


def test_a_parquet_file_says_the_same_as_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    pq.write_table(pa.table({"label": ["class-2"], "note": ["blurred"], "sample_id": ["s0"]}), path)
    found = selected(run_select(tables(tmp_path), tmp_path / "out", SelectSettings(overrides=path)))
    assert [row["label"] for row in found if row["source"] == "override"] == [2]


def test_ids_that_look_like_comments_and_folders_that_look_like_columns_are_read_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "label=1"
    folder.mkdir()
    path = csv(folder, "#1,class-2", "s0,class-0")
    with open_duckdb(tmp_path / "spill") as connection:
        assert sorted(read_rows(connection, path)) == [("#1", "class-2", ""), ("s0", "class-0", "")]


@pytest.mark.parametrize(
    ("content", "said"),
    [("name,label\ns0,class-1\n", "missing sample_id"), (None, "does not exist")],
)
def test_files_of_another_shape_are_refused(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "people.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=said):
        run_select(tables(tmp_path), tmp_path / "out", SelectSettings(overrides=path))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    path.write_text("sample_id,label\n")
    with pytest.raises(DataError, match="cannot be read"):
        run_select(tables(tmp_path), tmp_path / "out", SelectSettings(overrides=path))
