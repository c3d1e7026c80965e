"""Corrections that are applied are kept as they are, and the count of those in force is the truth."""

import json
from pathlib import Path

import pytest

from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.pseudo_labels.corrections import add_corrections
from selftrain.ssl_tasks.settings.pseudo_labels import CorrectedSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from tests.pseudo_labels.tables import Row, Tables, run_select, selected, stats

ODD = ("a\rb.png", "=1+1.png", "'=x", 'c,"d"\n.png', " blank ", "s0")
CLASSES = ["class-0", "class-1", "class-2"]


def dataset(folder: Path, *names: str, classes: list[str] = CLASSES, content: str = "c") -> tuple[Tables, Artifact]:
    """Tables of unlabelled images with these ids."""
    rows = [Row(name, number % 3, 0.9, content=f"{content}-{number}") for number, name in enumerate(names)]
    made = Tables(folder, rows)
    artifact, _ = made.write()
    (artifact.path / "info.json").write_text(json.dumps({"classes": classes}))
    return made, artifact


def given(folder: Path, text: str) -> Path:
    path = folder / "given.csv"
    path.write_text("sample_id,label\n" + text, newline="")
    return path


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_stay_corrected_when_others_are_added(tmp_path: Path, odd: str) -> None:
    tables, artifact = dataset(tmp_path / "t", odd, "s1")
    kept = tmp_path / "kept.csv"
    quoted = '"' + odd.replace('"', '""') + '"'
    if odd == "'=x":
        quoted = "''=x"
    assert add_corrections(kept, given(tmp_path, f"{quoted},class-2\n"), artifact).in_force == 1
    assert add_corrections(kept, given(tmp_path, "s1,reject\n"), artifact).in_force == 2
    found = selected(run_select(tables, tmp_path / "out", CorrectedSettings(corrections=kept)))
    assert [(row["sample_id"], row["label"]) for row in found if row["source"] == "override"] == [(odd, 2)]


def test_what_fits_no_more_is_kept_counted_and_not_in_force(tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    _, first = dataset(tmp_path / "a", "gone", "s0", "s1", classes=[*CLASSES, "old"])
    add_corrections(kept, given(tmp_path, "gone,class-1\ns0,old\ns1,class-0\n"), first)
    tables, second = dataset(tmp_path / "b", "s0", "s1", "s2", content="other")
    applied = add_corrections(kept, given(tmp_path, "s2,class-0\n"), second)
    assert (applied.in_force, applied.new, applied.changed) == (1, 1, 0)
    assert {reason: samples for reason, _, samples in applied.misfits} == {
        "no such class": ["s0"],
        "not in the data": ["gone"],
        "the image has changed since a person labelled it": ["s1"],
    }
    found = run_select(tables, tmp_path / "out", CorrectedSettings(corrections=kept))
    assert (stats(found)["overrides"], stats(found)["forgotten_overrides"]) == (1, 3)
    assert found.summary["unmatched_corrections"] == [
        "no such class: s0",
        "not in the data: gone",
        "the image has changed since a person labelled it: s1",
    ]
    again = add_corrections(kept, given(tmp_path, "s1,class-2\n"), second)
    assert (again.in_force, again.new, again.changed) == (2, 0, 1)


def test_a_class_called_reject_and_one_with_blanks_can_be_given_and_rejected(tmp_path: Path) -> None:
    classes = ["reject", " lead ", "class-2"]
    _, artifact = dataset(tmp_path / "t", "s0", "s1", "s2", classes=classes)
    kept = tmp_path / "kept.csv"
    with pytest.raises(DataError, match=r"a class is called 'reject': write class:reject for it, \(reject\) for none"):
        add_corrections(kept, given(tmp_path, "s0,reject\n"), artifact)
    assert not kept.exists()
    add_corrections(kept, given(tmp_path, "s0,class:reject\ns1,(reject)\ns2, lead \n"), artifact)
    assert add_corrections(kept, given(tmp_path, "s2,lead\n"), artifact).changed == 0
    assert kept.read_text() == "sample_id,label,content\ns0,class:reject,c-0\ns1,(reject),c-1\ns2, lead ,c-2\n"


def test_a_file_of_an_earlier_version_that_was_broken_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    _, artifact = dataset(tmp_path / "t", "a\rb", "s0")
    kept = tmp_path / "kept.csv"
    kept.write_bytes(b"sample_id,label\na\rb,class-0\n")
    with pytest.raises(DataError, match=r"line 2 of .*kept.csv has 1 cells; expected 2"):
        add_corrections(kept, given(tmp_path, "s0,class-0\n"), artifact)
    assert kept.read_bytes() == b"sample_id,label\na\rb,class-0\n"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("s0,\n", "1 rows without a label"),
        (",class-0\n,class-1\n", "2 rows without a sample_id"),
        ("s0,class-0\ns0,class-1\n", "two things of s0"),
        ("s0,class-0,note\n", "line 2 of .* has 3 cells"),
        ("s0,Class-0\n", "Did you mean 'class-0'"),
    ],
)
def test_rows_that_would_be_lost_are_refused(tmp_path: Path, rows: str, said: str) -> None:
    _, artifact = dataset(tmp_path / "t", "s0")
    with pytest.raises(DataError, match=said):
        add_corrections(tmp_path / "kept.csv", given(tmp_path, rows), artifact)
    assert not (tmp_path / "kept.csv").exists()
