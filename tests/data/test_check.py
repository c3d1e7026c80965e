"""The data check sees what is wrong; nothing that is held out is trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.inspect_folder import suggest_settings
from selftrain.ssl_tasks.data.sources import fingerprint
from selftrain.ssl_tasks.data.survey import check_data
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.data import DataSettings, FolderSource, TableSource

Build = Callable[..., Any]
Painter = Callable[..., Path]


@pytest.fixture
def cache(workspace: Path) -> Path:
    return workspace / "cache"


def folder(path: Path, **settings: Any) -> DataSettings:
    return DataSettings.model_validate({"source": {"name": "folder", "path": path}, **settings})


def test_a_clean_folder_is_counted(pets: Path, cache: Path, paint: Painter) -> None:
    paint(pets / "unlabeled" / "grey.png", 5, size=(10, 9), mode="L")
    (pets / "cat" / "Thumbs.db").write_bytes(b"")
    report = check_data(folder(pets, split={"labels_per_class": 3}), cache)
    assert report.ok
    assert report.counts["labeled"]["per_class"] == [3, 3]
    assert report.counts["validation"]["per_class"] == [1, 1]
    assert report.counts["unlabeled"]["images"] == 16 + 7
    assert report.totals == {"images": 35, "unreadable": 0, "duplicates": 0, "conflicts": 0, "leaks": 0}
    assert report.sizes == {"8x8": 34, "10x9": 1}
    assert report.modes == {"RGB": 34, "L": 1}
    assert report.few_labels == {"cat": 3, "dog": 3}
    assert report.notes == ("1 entry ignored: not images by their suffix '.db'",)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_an_image_under_two_classes_leaves_one_of_them_a_label_short(
    tmp_path: Path, cache: Path, paint: Painter
) -> None:
    for number in range(4):
        paint(tmp_path / "set" / "a" / f"{number}.png", number)
        paint(tmp_path / "set" / "b" / f"{number}.png", 3 + number)  # b/0 is a/3
        paint(tmp_path / "exam" / "ab"[number % 2] / f"{number}.png", 100 + number)
    source = {"name": "folder", "path": tmp_path / "set", "test": tmp_path / "exam"}
    settings = {"source": source, "split": {"labels_per_class": 4, "validation": 0}}
    report = check_data(DataSettings.model_validate(settings), cache)
    assert sorted(report.counts["labeled"]["per_class"]) == [3, 4]
    (problem,) = report.problems
    assert "has 3 labelled training images; expected at least 4" in problem


def test_duplicates_conflicts_and_leaks_are_found(pets: Path, cache: Path) -> None:
    shutil.copy(pets / "cat" / "00.png", pets / "dog" / "a cat.png")
    shutil.copy(pets / "unlabeled" / "00.png", pets / "unlabeled" / "copy.png")
    shutil.copy(pets / "test" / "cat" / "00.png", pets / "cat" / "seen.png")
    shutil.copy(pets / "test" / "dog" / "00.png", pets / "unlabeled" / "seen too.png")
    report = check_data(folder(pets, split={"validation": 0}), cache)
    assert report.totals["duplicates"] == 4
    assert report.conflicts == [[("cat/00.png", "cat"), ("dog/a cat.png", "dog")]]
    assert ["unlabeled/00.png", "unlabeled/copy.png"] in report.duplicates
    assert sorted(report.leaks) == [
        ("cat/seen.png", "labeled", "test/cat/00.png", "test"),
        ("unlabeled/seen too.png", "unlabeled", "test/dog/00.png", "test"),
    ]


def test_images_of_test_are_in_no_training_pool(build: Build, pets: Path, cache: Path) -> None:
    shutil.copy(pets / "test" / "cat" / "00.png", pets / "cat" / "seen.png")
    shutil.copy(pets / "test" / "dog" / "00.png", pets / "unlabeled" / "seen too.png")
    artifact = build(folder(pets), cache)
    data = Dataset.open(artifact, cache)
    held_out = {content for name in ("validation", "test") for content in data.pool(name).contents()}
    for name in ("labeled", "unlabeled"):
        assert not held_out & set(data.pool(name).contents())
    assert artifact.summary["in_held_out"] == 2
    assert dict(data.unreadable("unlabeled")) == {
        "cat/seen.png": "the same image is in test: test/cat/00.png",
        "unlabeled/seen too.png": "the same image is in test: test/dog/00.png",
    }


def test_copies_of_a_drawn_test_image_leave_training(build: Build, pets: Path, cache: Path) -> None:
    shutil.rmtree(pets / "test")
    for number in range(12):
        shutil.copy(pets / "cat" / f"{number:02d}.png", pets / "cat" / f"copy {number:02d}.png")
    data = Dataset.open(build(folder(pets, split={"test": 0.5}), cache), cache)
    trained = set(data.pool("labeled").contents()) | set(data.pool("unlabeled").contents())
    assert not trained & set(data.pool("test").contents())
    assert len(data.pool("test")) == 6 + 6


def test_a_problem_does_not_stop_the_report(pets: Path, cache: Path) -> None:
    (pets / "emu").mkdir()
    (pets / "cat" / "bad.png").write_bytes(b"")
    report = check_data(folder(pets), cache)
    assert not report.ok
    assert len(report.problems) == 2
    assert report.unreadable == [("cat/bad.png", "empty file (0 bytes)")]


def test_class_folders_are_suggested_as_they_lie(pets: Path) -> None:
    found = suggest_settings(pets)
    assert found.settings.source == FolderSource(name="folder", path=pets)
    assert found.labels == {"cat": 12, "dog": 12}
    assert found.splits == {"labeled": 24, "unlabeled": 6, "test": 4}
    assert found.sides == (8, 8, 8)


def test_train_and_val_folders_are_suggested_by_their_role(pets: Path, paint: Painter) -> None:
    root = pets.parent / "all"
    root.mkdir()
    (pets / "test").rename(root / "val")
    (pets / "unlabeled").rename(root / "Unlabelled")
    pets.rename(root / "train")
    found = suggest_settings(root)
    assert found.settings.source == FolderSource(
        name="folder", path=root / "train", validation=root / "val", unlabeled=root / "Unlabelled"
    )
    assert found.splits == {"labeled": 24, "unlabeled": 6, "validation": 4}


def test_a_pair_of_tables_is_suggested_with_its_columns(tmp_path: Path) -> None:
    for name in ("x-train.csv", "x-test.csv"):
        (tmp_path / name).write_text("file,category,weight\na.png,cat,1\n")
    found = suggest_settings(tmp_path)
    assert found.settings.source == TableSource(
        name="table", path=tmp_path / "x-train.csv", test_path=tmp_path / "x-test.csv", image="file", label="category"
    )
    assert found.labels == {"cat": 1}


def test_nothing_to_suggest_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    for place, message in (
        ("empty", "neither class folders"),
        ("notes.txt", "is neither a folder nor named like a table"),
        ("t.csv", "image: a, b"),
    ):
        with pytest.raises(DataError, match=message):
            suggest_settings(tmp_path / place)


def test_hidden_images_and_classes_that_look_alike_are_counted_and_named(
    pets: Path, cache: Path, paint: Painter
) -> None:
    for name in (".bird/0.png", "..owl/0.png", "cat/.blurred.png", "cat/sub/..twice.png", "test/.dog/0.png"):
        paint(pets / name, 7)
    for name in ("cat/.DS_Store", "cat/._00.png", ".gitignore"):
        (pets / name).write_bytes(b"")
    paint(pets / "Cat" / "cat..1.jpg", 8)
    paint(pets / "unlabeled" / "...png", 9, format="PNG")
    source = {"name": "folder", "path": pets}
    notes = (
        "3 entries ignored: hidden files that are not images",
        "6 entries ignored: hidden, because the name begins with a dot: "
        "cat/.blurred.png, pets/..owl, pets/.bird, sub/..twice.png, test/.dog, unlabeled/...png",
        "2 classes differ only in case or blanks: 'Cat', 'cat'",
    )
    settings = DataSettings.model_validate({"source": source, "split": {"validation": 0}})
    report = check_data(settings, cache)
    assert report.notes == notes
    assert report.counts["unlabeled"]["images"] == 6
    assert suggest_settings(pets).notes == notes
    said: list[str] = []
    fingerprint(settings, cache, said.append)
    assert tuple(said) == notes


def test_a_table_s_classes_that_look_alike_are_named(pets: Path, cache: Path) -> None:
    rows = [f"cat/{n:02}.png,Cat\ndog/{n:02}.png,dog\ndog/{n + 6:02}.png,cat\n" for n in range(6)]
    (pets / "list.csv").write_text("image,label\n" + "".join(rows))
    settings = DataSettings.model_validate({"source": {"name": "table", "path": pets / "list.csv"}})
    assert check_data(settings, cache).notes == ("2 classes differ only in case or blanks: 'Cat', 'cat'",)
