"""Checking a folder ends soon, takes little memory and names ignored entries, for every kind of file."""

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from selftrain.flows.cli.main import main
from selftrain.ssl_tasks.data.decode import Decoder
from selftrain.ssl_tasks.data.sources import open_source
from selftrain.ssl_tasks.data.sources.folder import image_files
from selftrain.ssl_tasks.data.survey import check_data
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.regular_file import read_regular
from selftrain.ssl_tasks.settings.data import DataSettings, FolderSource
from selftrain.ssl_tasks.store.file_digests import FileDigests
from selftrain.ssl_tasks.trained.classify import listed_images, read_image

Painter = Callable[..., Path]
KERNEL_LOG = Path("/proc/kmsg")  # reading it waits for the kernel's next message


def folder(path: Path, **source: object) -> DataSettings:
    return DataSettings.model_validate({"max_unreadable": 0.9, "source": {"name": "folder", "path": path, **source}})


def ids(path: Path, **source: object) -> set[str]:
    return set(open_source(folder(path, **source).source, Path()).listing().ids.to_pylist())


@pytest.fixture
def cache(workspace: Path) -> Path:
    return workspace / "cache"


def test_pipes_devices_and_endless_files_are_not_read(pets: Path, cache: Path) -> None:
    os.mkfifo(pets / "cat" / "pipe.png")
    for name, target in (("log.png", KERNEL_LOG), ("zero.png", Path("/dev/zero")), ("tty.png", Path("/dev/tty"))):
        (pets / "cat" / name).symlink_to(target)
    unreadable = dict(check_data(folder(pets), cache).unreadable)
    assert {name: unreadable[f"cat/{name}.png"] for name in ("pipe", "zero", "tty")} == dict.fromkeys(
        ("pipe", "zero", "tty"), "no such file"
    )
    assert "cat/log.png" in unreadable
    decoder = Decoder(8, 3, 100)
    for name in ("pipe", "log", "zero", "tty"):  # as `predict` reads them
        assert read_image(pets / "cat" / f"{name}.png", decoder).error
    assert FileDigests(cache).of(pets / "cat", ["pipe.png", "zero.png"]) == [None, None]


def test_a_file_larger_than_the_setting_is_not_read(pets: Path, cache: Path) -> None:
    huge = pets / "cat" / "huge.png"
    huge.touch()
    os.truncate(huge, 7_000_000_000)
    unreadable = dict(check_data(folder(pets), cache).unreadable)
    assert unreadable["cat/huge.png"] == "the file has 7,000,000,000 bytes, more than the 256,000,000 that are read"
    assert "more than the" in (read_image(huge, Decoder(8, 3, 100)).error or "")
    os.truncate(huge, 2_000_000)
    assert "more than the 1,000,000" in dict(check_data(folder(pets, max_file_mb=1), cache).unreadable)["cat/huge.png"]


def test_of_a_file_that_grows_no_more_is_read_than_it_had(tmp_path: Path) -> None:
    path = tmp_path / "grows"
    path.write_bytes(b"1234")
    assert read_regular(path, 4) == b"1234"
    path.write_bytes(b"12345")
    with pytest.raises(OSError, match="5 bytes, more than the 4"):
        read_regular(path, 4)
    assert read_regular(Path("/proc/self/status"), 100) == b""


def test_a_pipe_for_a_list_or_a_table_is_refused(pets: Path, tmp_path: Path, cache: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="not a regular file"):
        check_data(folder(pets, unlabeled=pipe), cache)
    with pytest.raises(DataError, match=r"not a regular file; expected a CSV or Parquet file"):
        check_data(DataSettings.model_validate({"source": {"name": "table", "path": pipe}}), cache)
    assert threading.active_count() < 50


def test_a_class_that_is_a_link_to_another_disk_needs_a_setting(
    pets: Path, tmp_path: Path, paint: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    bird = paint(tmp_path / "disk" / "bird" / "0.png", 1).parent
    (pets / "bird").symlink_to(bird)
    with pytest.raises(DataError, match=r"bird is a link to .*disk/bird, outside .*follow_links"):
        ids(pets)
    assert "bird/0.png" in ids(pets, follow_links=True)
    recipe = tmp_path / "recipe.yaml"
    assert main(["init", str(pets), "--output", str(recipe)]) == 2
    assert "--follow-links" in capsys.readouterr().err
    assert main(["init", str(pets), "--output", str(recipe), "--follow-links"]) == 0
    assert '"follow_links": true' in recipe.read_text()


@pytest.mark.parametrize("name", ["unlabeled", "validation", "test"])
def test_a_split_that_is_a_link_to_another_disk_needs_a_setting(pets: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (pets / name).exists():
        (pets / name).rename(elsewhere)
    (elsewhere / "cat").mkdir(parents=True, exist_ok=True)
    (pets / name).symlink_to(elsewhere)
    with pytest.raises(DataError, match=rf"{name} is a link to .*outside"):
        ids(pets)
    ids(pets, follow_links=True)
    ids(pets, **{name: pets / name})  # named by a person
    assert ids(pets, **{name: elsewhere})


def test_the_image_folder_itself_may_be_a_link(pets: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(pets)
    assert ids(link) == ids(pets)


def test_links_out_of_the_folder_are_counted_and_not_walked(pets: Path, tmp_path: Path, paint: Painter) -> None:
    paint(tmp_path / "disk" / "0.png", 1)
    for name in ("a", "b"):
        (pets / "cat" / name).symlink_to(tmp_path / "disk")
    paint(pets / "dog" / "inner" / "1.png", 2)
    (pets / "cat" / "within").symlink_to(pets / "dog" / "inner")
    (pets / "cat" / "system").symlink_to("/usr")
    source = open_source(FolderSource(name="folder", path=pets), Path())
    (note,) = [note for note in source.listing().notes if "outside" in note]
    assert note.startswith("3 entries ignored: links to folders outside the image folder, such as ")
    assert f"{pets}/cat/a;" in note
    assert "follow_links" in note
    assert "cat/within/1.png" in source.listing().ids.to_pylist()
    (pets / "cat" / "system").unlink()
    assert {"cat/a/0.png", "cat/b/0.png"} <= ids(pets, follow_links=True)


def test_predict_does_not_walk_out_of_the_folder_that_it_was_given(
    pets: Path, tmp_path: Path, paint: Painter, caplog: pytest.LogCaptureFixture
) -> None:
    (pets / "cat" / "disk").symlink_to(paint(tmp_path / "disk" / "0.png", 1).parent)
    assert not [path for path in listed_images([pets]) if "disk" in path.parts]
    assert "links to folders outside" in caplog.text
    assert listed_images([pets / "cat" / "disk"]) == [pets / "cat" / "disk" / "0.png"]


def test_links_whose_ways_double_at_each_step_end(tmp_path: Path, paint: Painter) -> None:
    for number in range(40):
        step = tmp_path / "links" / f"{number:02}"
        step.mkdir(parents=True)
        for name in ("a", "b"):
            (step / name).symlink_to(tmp_path / "links" / f"{number + 1:02}")
    paint(tmp_path / "links" / "40" / "0.png", 1)
    notes = Counter[str]()
    found = image_files(tmp_path / "links", notes)
    assert {"39/a/0.png", "40/0.png", "37/a/b/a/0.png"} <= set(found)
    assert len(found) == 1 + 2 + 4 + 8
    assert notes["links to folders below 3 other links"] > 0


def test_folders_deeper_than_python_may_call_are_walked(tmp_path: Path) -> None:
    inner = tmp_path / "deep"
    inner.mkdir()
    here = os.open(inner, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    found = image_files(inner, Counter())
    subprocess.run(["rm", "-rf", str(inner)], check=True)  # pytest cannot
    assert [name.count("/") for name in found] == [1500]
