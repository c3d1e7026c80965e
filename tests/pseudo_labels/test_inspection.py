"""Looking at two rounds of hand-written tables, and asking them in SQL."""

import json
from pathlib import Path
from typing import Any

import pytest

from selftrain.ssl_tasks.errors import NotFound, UserError
from selftrain.ssl_tasks.pseudo_labels.inspection import (
    LabelFilter,
    class_summary,
    flips,
    labels_table,
    review_queue,
    round_differences,
)
from selftrain.ssl_tasks.pseudo_labels.views import RoundTables, RunTables, sql
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings
from tests.pseudo_labels.tables import Held, Row, Tables, run_select

NAMES = ("class-0", "class-1", "class-2")
FIRST = [
    Row("steady", 0, 0.95, feature_distance=0.1),
    Row("flips", 0, 0.9, feature_distance=0.1),
    Row("edge", 1, 0.52, feature_distance=0.1),
    Row("split", 1, 0.9, view_agreement=0.5, feature_distance=0.1),
    Row("far", 1, 0.99, feature_distance=0.9),
    Row("weak", 2, 0.2, feature_distance=0.1),
    Row("broken", None, error="truncated"),
]
SECOND = [
    Row("flips", 1, 0.9, feature_distance=0.1) if row.sample_id == "flips" else row for row in FIRST
]  # the truth that `Tables` writes is the label of its rows: the second round's are all right


@pytest.fixture
def run(tmp_path: Path) -> RunTables:
    """Two rounds; in the second, one label is another and a person has corrected one."""
    people = tmp_path / "people.csv"
    people.write_text("sample_id,label\nweak,class-0\n")
    settings = [
        SelectSettings(threshold=0.5, balance="none"),
        SelectSettings(threshold=0.5, balance="none", overrides=people),
    ]
    rounds = []
    for number, (rows, wanted) in enumerate(zip((FIRST, SECOND), settings, strict=True), 1):
        tables = Tables(
            tmp_path / str(number), rows, labeled=[("l0", 0, "x"), ("l1", 1, "y")], validation=[Held(0, 0, 0.9)]
        )
        selection = run_select(tables, tmp_path / f"selection-{number}", wanted)
        rounds.append(RoundTables(number, tables.folder / "predictions-1", selection.path))
    dataset = tmp_path / "2" / "dataset"
    (dataset / "info.json").write_text(json.dumps({"classes": NAMES}))
    return RunTables(dataset, rounds)


def test_differences_are_other_classes_and_other_fates(run: RunTables) -> None:
    found = round_differences(run, 1, 2).set_index("sample_id")
    assert found.index.tolist() == ["flips", "weak"]
    columns = ["class 1", "class 2", "selected 1", "selected 2"]
    assert found.loc["flips", columns].tolist() == ["class-0", "class-1", True, True]
    assert found.loc["weak", columns].tolist() == ["class-2", "class-0", False, True]
    with pytest.raises(NotFound, match="no round 9"):
        round_differences(run, 1, 9)


def test_the_summary_has_a_line_for_each_class(run: RunTables) -> None:
    summary = class_summary(run, 1)
    assert summary["name"].tolist() == list(NAMES)
    assert summary["candidates"].tolist() == [2, 3, 1]
    assert summary["kept"].tolist() == [2, 3, 0]
    assert summary["true_precision"].tolist()[:2] == [0.5, 1.0]  # one of class 0's is class 1 in truth
    assert summary["estimated_precision"].tolist()[0] == 1.0


def test_flips_are_labels_that_changed_since_the_previous_round(run: RunTables) -> None:
    found = flips(run).to_dict("records")
    assert [(row["previous_class"], row["class"], row["images"], row["kept"]) for row in found] == [
        ("class-0", "class-1", 1, 1)
    ]
    assert flips(run, 1).empty


def test_the_queue_puts_first_what_is_worth_a_look_and_says_why(run: RunTables) -> None:
    queue = review_queue(run).set_index("sample_id")
    assert queue.index.tolist()[:2] == ["far", "flips"]
    assert "its class changed since the previous round" in queue.loc["flips", "reasons"]
    assert "views or teachers disagree" in queue.loc["split", "reasons"]
    assert queue.loc["edge", "reasons"] == "near the threshold"
    assert "far from its class" in queue.loc["far", "reasons"]
    assert queue.loc["steady", "score"] == 0
    assert "weak" not in queue.index  # a person has looked already
    assert "broken" not in queue.index
    assert len(review_queue(run, limit=2)) == 2


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, ["far", "steady", "flips", "split", "edge", "weak", "broken"]),
        ({"class_name": "class-1"}, ["far", "flips", "split", "edge"]),
        ({"flipped": True}, ["flips"]),
        ({"min_confidence": 0.95}, ["far", "steady"]),
        ({"selected": False}, ["broken"]),
        ({"source": "override"}, ["weak"]),
        ({"sort": "confidence", "limit": 2}, ["weak", "edge"]),
        ({"round": 1, "selected": True, "sort": "-distance"}, ["far", "edge", "flips", "split", "steady"]),
    ],
)
def test_labels_are_filtered_and_sorted(run: RunTables, wanted: dict[str, Any], names: list[str]) -> None:
    assert labels_table(run, LabelFilter(**wanted))["sample_id"].tolist() == names


def test_a_correction_shows_both_labels(run: RunTables) -> None:
    line = labels_table(run, LabelFilter(source="override")).to_dict("records")[0]
    assert (line["class"], line["predicted"], line["truth"]) == ("class-0", "class-2", 2)


@pytest.mark.parametrize(
    "wanted", [LabelFilter(round=7), LabelFilter(class_name="clas-1"), LabelFilter(sort="confidense")]
)
def test_unknown_rounds_classes_and_columns_are_named(run: RunTables, wanted: LabelFilter) -> None:
    with pytest.raises(NotFound, match=r"round 7|Did you mean"):
        labels_table(run, wanted)


def test_a_run_without_rounds_says_so(run: RunTables) -> None:
    with pytest.raises(NotFound, match="expected a round with predictions"):
        class_summary(RunTables(run.dataset, []))
    waiting = RunTables(run.dataset, [RoundTables(1, run.rounds[0].predictions)])
    with pytest.raises(NotFound, match="has no selection yet"):
        class_summary(waiting)
    assert sql(waiting, "SELECT count(*) AS n FROM selection")["n"].tolist() == [0]


def test_sql_before_the_first_round_answers_with_no_rows(run: RunTables) -> None:
    early = RunTables(run.dataset, [])
    assert len(sql(early, "SELECT * FROM manifest")) > 0
    for view in ("predictions", "selection", "rounds"):
        assert sql(early, f"SELECT count(*) AS n FROM {view}")["n"].tolist() == [0]
        described = f"SELECT column_name, column_type FROM (DESCRIBE {view})"
        assert sql(early, described).to_dict("list") == sql(run, described).to_dict("list")


def test_sql_sees_all_rounds(run: RunTables) -> None:
    counted = sql(
        run, "SELECT round, count(*) AS n, count(position) AS readable FROM predictions GROUP BY ALL ORDER BY 1"
    )
    assert counted.to_dict("list") == {"round": [1, 2], "n": [7, 7], "readable": [6, 6]}
    assert sql(run, "SELECT kept FROM rounds ORDER BY round")["kept"].tolist() == [5, 6]
    joined = "SELECT class FROM selection JOIN manifest USING (sample_id) WHERE round = 2 AND source = 'override'"
    assert sql(run, joined.replace("class FROM", "selection.class AS class FROM"))["class"].tolist() == ["class-0"]
    assert set(sql(run, "SHOW TABLES")["name"]) == {"manifest", "predictions", "rounds", "selection"}


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{out}'",
        "COPY (SELECT 1 AS sample_id) TO '{manifest}' (FORMAT parquet, USE_TMP_FILE false)",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{manifest}' (FORMAT parquet, USE_TMP_FILE false)",
        "SELECT * FROM '{other}'",
        "SELECT * FROM read_csv('{other}')",
        "SELECT * FROM read_text('{other}')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM sniff_csv('{other}')",
        "ATTACH '{out}'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "PRAGMA enable_profiling",
        "CREATE TABLE mine AS SELECT 1",
        "DROP VIEW manifest",
        "INSERT INTO rounds SELECT * FROM rounds",
        "EXPORT DATABASE '{out}'",
        "SELECT 1; SELECT 2",
        "SELECT * FROM outside",
        "SELECT nothing FROM manifest",
        "SELEC 1",
        "",
    ],
)
def test_sql_writes_nothing_and_reads_no_other_file(run: RunTables, tmp_path: Path, query: str) -> None:
    outside = [1]  # a Python name is no table
    other, out, manifest = tmp_path / "other.csv", tmp_path / "out", run.dataset / "manifest.parquet"
    other.write_text("secret\n1\n")
    before = manifest.read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError):
        sql(run, query.format(out=out, other=other, manifest=manifest, folder=tmp_path))
    assert manifest.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == names
    assert outside == [1]


def test_a_query_larger_than_its_memory_spills_or_says_so(run: RunTables) -> None:
    texts = "SELECT md5(number::VARCHAR) AS text, number FROM range(1500000) t(number)"
    query = f"SELECT count(*) AS n FROM ({texts}) a JOIN ({texts}) b USING (text)"
    assert sql(run, query, memory_gb=0.06)["n"].tolist() == [1_500_000]
