"""Everything that is wrong with a source is said, with a remedy; what is merely odd is read."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.inspect_folder import suggest_settings
from selftrain.ssl_tasks.data.sources import open_source
from selftrain.ssl_tasks.data.survey import check_data
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.data import DataSettings

Build = Callable[..., Any]
Painter = Callable[..., Path]


def folder(path: Path, **settings: Any) -> DataSettings:
    return DataSettings.model_validate({"source": {"name": "folder", "path": path}, **settings})


def table(path: Path, rows: dict[str, list[Any]], **source: Any) -> DataSettings:
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return DataSettings.model_validate({"source": {"name": "table", "path": path, **source}})


@pytest.fixture
def cache(workspace: Path) -> Path:
    return workspace / "cache"


def test_unreadable_images_are_quarantined_with_their_reasons(build: Build, pets: Path, cache: Path) -> None:
    whole = (pets / "cat" / "00.png").read_bytes()
    Image.open(pets / "cat" / "01.png").save(pets / "cat" / "cut.jpg")
    cut = (pets / "cat" / "cut.jpg").read_bytes()
    (pets / "cat" / "cut.jpg").write_bytes(cut[:-40])
    (pets / "cat" / "half.png").write_bytes(whole[: len(whole) // 2])
    (pets / "dog" / "empty.png").write_bytes(b"")
    (pets / "unlabeled" / "text.png").write_text("no image at all")
    Image.new("1", (20_000, 20_000)).save(pets / "unlabeled" / "bomb.png")
    artifact = build(folder(pets, max_unreadable=0.2), cache)
    data = Dataset.open(artifact, cache)
    assert artifact.summary["unreadable"] == 5
    reasons = dict(data.unreadable("unlabeled"))
    assert "truncated" in reasons["cat/cut.jpg"]
    assert "truncated" in reasons["cat/half.png"]
    assert "empty file" in reasons["dog/empty.png"]
    assert "not an image" in reasons["unlabeled/text.png"]
    assert "max_pixels" in reasons["unlabeled/bomb.png"]
    pool = data.pool("unlabeled")
    assert not set(reasons) & set(pool.sample_ids())
    assert len(pool.images(np.arange(len(pool)))) == len(pool)


def test_too_many_unreadable_images_fail_with_their_reasons(build: Build, pets: Path, cache: Path) -> None:
    (pets / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 35 images \(2.9%\).*max_unreadable.*empty file.*dog/empty.png"):
        build(folder(pets), cache)


def test_odd_names_are_read(build: Build, pets: Path, cache: Path, paint: Painter) -> None:
    names = ["with space.png", "Katze über Öl.png", "猫.png", "'quoted' \"name\".png", "new\nline.png", "UPPER.PNG"]
    for number, name in enumerate(names):
        paint(pets / "cat" / "sub folder" / name, 500 + number)
    data = Dataset.open(build(folder(pets), cache), cache)
    everything = [sample for split in ("unlabeled", "validation", "test") for sample in data.pool(split).sample_ids()]
    assert {f"cat/sub folder/{name}" for name in names} <= set(everything)


def test_a_name_that_is_not_utf8_is_quarantined(build: Build, pets: Path, cache: Path, paint: Painter) -> None:
    os.rename(paint(pets / "unlabeled" / "x.png", 600), os.fsencode(pets / "unlabeled") + b"/caf\xe9.png")
    data = Dataset.open(build(folder(pets, max_unreadable=0.1), cache), cache)
    assert data.unreadable("unlabeled") == [("unlabeled/caf\\xe9.png", "the file's name is not UTF-8; rename it")]


def test_links_in_a_circle_end_and_links_to_images_are_followed(
    build: Build, pets: Path, cache: Path, tmp_path: Path, paint: Painter
) -> None:
    (pets / "cat" / "loop").symlink_to(pets / "cat")
    (pets / "cat" / "up").symlink_to(pets)
    (pets / "dog" / "self.png").symlink_to(pets / "dog" / "self.png")
    (pets / "dog" / "linked.png").symlink_to(paint(tmp_path / "elsewhere" / "dog.png", 700))
    report = check_data(folder(pets, max_unreadable=0.5), cache)
    assert ("dog/self.png", "no such file") in report.unreadable
    assert "2 entries ignored: links that lead in a circle" in report.notes
    data = Dataset.open(build(folder(pets, max_unreadable=0.5), cache), cache)
    everything = {sample for split in ("unlabeled", "validation") for sample in data.pool(split).sample_ids()}
    assert "dog/linked.png" in everything
    assert not any("loop" in sample or "up" in sample for sample in everything)


def test_a_pipe_does_not_hang_the_reader(pets: Path, cache: Path) -> None:
    os.mkfifo(pets / "cat" / "pipe.png")
    assert ("cat/pipe.png", "no such file") in check_data(folder(pets), cache).unreadable


@pytest.mark.parametrize("escape", ["../secret.png", "cat/../../secret.png", "{absolute}/secret.png"])
def test_paths_that_leave_the_root_are_not_read(pets: Path, cache: Path, paint: Painter, escape: str) -> None:
    paint(pets.parent / "secret.png", 800)
    written = escape.format(absolute=pets.parent)
    rows = {"image": ["cat/00.png", "dog/00.png", written], "label": ["cat", "dog", "cat"]}
    report = check_data(table(pets / "list.csv", rows), cache)
    assert report.unreadable == [(written, "the path lies outside the root folder")]
    (pets / "list.txt").write_text(f"unlabeled/00.png\n{written}\n")
    listed = DataSettings.model_validate({"source": {"name": "folder", "path": pets, "unlabeled": pets / "list.txt"}})
    assert (f"unlabeled/{written}", "the path lies outside the root folder") in check_data(listed, cache).unreadable


def test_absolute_paths_below_the_root_are_read(build: Build, pets: Path, cache: Path) -> None:
    names = [f"{pets}/{label}/{number:02d}.png" for label in ("cat", "dog") for number in range(12)]
    rows = {"image": names, "label": ["cat"] * 12 + ["dog"] * 12}
    assert build(table(pets / "list.csv", rows), cache).summary["unreadable"] == 0


def test_a_missing_label_column_names_the_nearest(pets: Path, cache: Path) -> None:
    settings = table(pets / "list.csv", {"image": ["cat/00.png"], "lable": ["cat"]})
    with pytest.raises(DataError, match=r"no column 'label'. Did you mean 'lable'"):
        check_data(settings, cache)


def test_a_label_outside_the_class_list_names_the_nearest(pets: Path, cache: Path) -> None:
    settings = folder(pets).model_copy(update={"classes": ("cats", "dog")})
    with pytest.raises(DataError, match=r"for example 'cat'\. Did you mean 'cats'"):
        check_data(settings, cache)


@pytest.mark.parametrize("column", [None, "key"])
def test_repeated_ids_are_refused(pets: Path, cache: Path, column: str | None) -> None:
    rows = {"image": ["cat/00.png", "dog/00.png", "cat/00.png"], "label": ["cat", "dog", "cat"], "key": ["a", "b", "a"]}
    with pytest.raises(DataError, match=r"1 ids are used for more than one sample: '(a|cat/00.png)'"):
        check_data(table(pets / "list.csv", rows, id=column), cache)


def test_an_empty_class_is_named(build: Build, pets: Path, cache: Path) -> None:
    (pets / "bird").mkdir()
    with pytest.raises(DataError, match=r"class 'bird' has 0 labelled training images; expected at least 1"):
        build(folder(pets), cache)


def test_no_labelled_sample_is_said(pets: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"none of 2 samples has a label"):
        check_data(table(pets / "list.csv", {"image": ["cat/00.png", "dog/00.png"], "label": ["", ""]}), cache)


def test_one_class_is_too_few(pets: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"one class, 'cat'"):
        check_data(table(pets / "list.csv", {"image": ["cat/00.png"], "label": ["cat"]}), cache)


def test_fewer_labels_than_asked_for_names_each_class(build: Build, pets: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"'cat' has 11 labelled .* at least 12\nclass 'dog' has 11"):
        build(folder(pets, split={"labels_per_class": 12}), cache)


def test_fewer_labels_than_classes_names_the_missing(build: Build, pets: Path, cache: Path) -> None:
    settings = table(pets / "list.csv", {"image": ["cat/00.png", "dog/00.png"], "label": ["cat", "dog"]})
    settings = settings.model_copy(update={"classes": ("cat", "dog", "emu")})
    with pytest.raises(DataError, match=r"class 'emu' has 0 labelled training images"):
        build(settings, cache)


def test_a_mistyped_path_names_the_nearest_that_exists(pets: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=rf"Did you mean '{pets}'"):
        check_data(folder(pets.parent / "pest"), cache)
    with pytest.raises(DataError, match=rf"Did you mean '{pets}'\? {pets.parent} holds"):
        check_data(folder(pets.parent / "pet" / "below"), cache)


def test_a_file_in_place_of_a_folder_is_said(pets: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"is a file; expected a folder"):
        check_data(folder(pets / "cat" / "00.png"), cache)


def test_a_folder_one_level_too_high_names_the_right_one(pets: Path, cache: Path) -> None:
    (pets.parent / "all").mkdir()
    pets.rename(pets.parent / "all" / "train")
    with pytest.raises(DataError, match=r"Set data.source.path to '.*all/train'"):
        check_data(folder(pets.parent / "all"), cache)


def test_images_without_class_folders_are_said(tmp_path: Path, cache: Path, paint: Painter) -> None:
    paint(tmp_path / "flat" / "0.png")
    with pytest.raises(DataError, match=r"has no class folders"):
        check_data(folder(tmp_path / "flat"), cache)


def test_an_image_of_a_table_that_is_not_there_is_quarantined(pets: Path, cache: Path) -> None:
    names = ["cat/00.png", "dog/00.png", "dog/none.png", None]
    rows: dict[str, list[Any]] = {"image": names, "label": ["cat", "dog", "dog", "cat"]}
    report = check_data(table(pets / "list.parquet", rows), cache)
    assert dict(report.unreadable)["dog/none.png"] == "no such file"
    assert "no path" in dict(report.unreadable).values()
    assert not report.ok


def test_a_table_that_is_no_table_is_said(tmp_path: Path, cache: Path) -> None:
    for name, text in (("a.parquet", "not Parquet"), ("b.csv", 'image,label\n"a')):
        (tmp_path / name).write_text(text)
        settings = DataSettings.model_validate({"source": {"name": "table", "path": tmp_path / name}})
        with pytest.raises(DataError, match=r"Parquet|CSV"):
            check_data(settings, cache)


def test_a_class_folder_that_is_not_utf8_is_said(pets: Path, cache: Path) -> None:
    os.mkdir(os.fsencode(pets) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"pets/caf\\xe9 has a name that is not UTF-8; rename it"):
        check_data(folder(pets), cache)


@pytest.mark.parametrize(("name", "role"), [("val", "validation"), ("Unlabeled", "unlabeled"), ("Testing", "test")])
def test_a_folder_called_as_a_split_is_no_class_unless_the_recipe_says_so(
    pets: Path, cache: Path, paint: Painter, name: str, role: str
) -> None:
    for number in range(3):
        paint(pets / name / "cat" / f"{number}.png", 900 + number)
    with pytest.raises(
        DataError, match=rf"'{name}' looks like a folder of .* Set data.source.{role} to it, .* data.classes"
    ):
        check_data(folder(pets), cache)
    assert check_data(folder(pets, classes=["cat", "dog", name]), cache).classes == ("cat", "dog", name)
    named = DataSettings.model_validate({"source": {"name": "folder", "path": pets, role: pets / name}})
    assert check_data(named, cache).classes == ("cat", "dog")


def test_a_folder_called_train_in_capitals_is_a_level_too_high_too(pets: Path, cache: Path) -> None:
    (pets.parent / "all").mkdir()
    pets.rename(pets.parent / "all" / "Train")
    with pytest.raises(DataError, match=r"Set data.source.path to '.*all/Train'"):
        check_data(folder(pets.parent / "all"), cache)


def test_images_beside_the_class_folders_are_counted(pets: Path, cache: Path, paint: Painter) -> None:
    for place in ("a.png", "b.JPG", "test/c.png"):
        paint(pets / place, 950)
    (pets / "readme.txt").write_text("about pets")
    assert check_data(folder(pets), cache).notes == ("3 entries ignored: images in no class folder",)
    (pets / "list.txt").write_text("a.png\nb.JPG\n")
    listed = DataSettings.model_validate({"source": {"name": "folder", "path": pets, "unlabeled": pets / "list.txt"}})
    assert check_data(listed, cache).notes == ()  # a list may name all that lie below its folder


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_file_in_place_of_held_out_class_folders_is_said(pets: Path, cache: Path, split: str) -> None:
    source = {"name": "folder", "path": pets, split: pets / "cat" / "00.png"}
    with pytest.raises(DataError, match=rf"{split} images' place .*00.png is a file; expected a folder"):
        check_data(DataSettings.model_validate({"source": source}), cache)


def test_a_list_of_unlabelled_images_that_is_not_utf8_is_said(pets: Path, cache: Path) -> None:
    (pets / "list.txt").write_bytes(b"unlabeled/caf\xe9.png\n")
    source = {"name": "folder", "path": pets, "unlabeled": pets / "list.txt"}
    with pytest.raises(DataError, match=r"list.txt is not UTF-8 text .*; expected one path a line"):
        check_data(DataSettings.model_validate({"source": source}), cache)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_that_is_there_twice_is_said(tmp_path: Path, cache: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text("image,label,label\na.png,cat,dog\n")
    columns = [pa.array(["a.png"]), pa.array(["cat"]), pa.array(["dog"])]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "label", "label"]), tmp_path / "a.parquet")
    settings = DataSettings.model_validate({"source": {"name": "table", "path": tmp_path / name}})
    with pytest.raises(DataError, match=r"has 2 columns 'label'; expected one. Rename the others"):
        check_data(settings, cache)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_suggestion_for_a_table_that_is_none_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=rf"{name} (cannot be read as CSV|is not a Parquet file)"):
        suggest_settings(tmp_path / name)


def test_a_large_table_may_have_line_breaks_in_quotes(tmp_path: Path, cache: Path) -> None:
    lines = "".join(f'{number}.png,cat,"a cat\non a mat"\n' for number in range(60_000))
    (tmp_path / "a.csv").write_text("image,label,caption\n" + lines)
    settings = DataSettings.model_validate({"source": {"name": "table", "path": tmp_path / "a.csv"}})
    assert len(open_source(settings.source, cache).listing()) == 60_000


def test_labels_with_fractions_are_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"'label' .* has fractions"):
        check_data(table(tmp_path / "a.parquet", {"image": ["a", "b"], "label": [0.5, 1.0]}), cache)


def test_a_strange_split_is_named(pets: Path, cache: Path) -> None:
    rows = {"image": ["cat/00.png", "dog/00.png"], "label": ["cat", "dog"], "part": ["tset", "train"]}
    with pytest.raises(DataError, match=r"column 'part' says 'tset'. Did you mean 'test'"):
        check_data(table(pets / "list.csv", rows, split="part"), cache)


def test_a_test_image_without_a_label_is_said(pets: Path, cache: Path) -> None:
    rows = {"image": ["cat/00.png", "dog/00.png", "dog/01.png"], "label": ["cat", "dog", ""], "part": ["", "", "test"]}
    report = check_data(table(pets / "list.csv", rows, split="part"), cache)
    assert any(
        "1 images of the split 'test' have no label, for example dog/01.png" in problem for problem in report.problems
    )


def test_manifests_hold_no_place_of_this_machine(build: Build, pets: Path, cache: Path) -> None:
    (pets / "unlabeled" / "broken.png").write_bytes(b"")
    artifact = build(folder(pets, max_unreadable=0.5), cache)
    text = str(pq.read_table(artifact.file("manifest.parquet")).to_pylist()) + artifact.file("info.json").read_text()
    assert str(pets.parent) not in text
