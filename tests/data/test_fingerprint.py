"""The fingerprint names contents, not places; what did not change is neither read nor decoded again."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.sources import fingerprint, open_source
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.file_digests import FileDigests

Build = Callable[..., Any]
Painter = Callable[..., Path]


def folder(path: Path, **settings: Any) -> DataSettings:
    return DataSettings.model_validate({"source": {"name": "folder", "path": path}, **settings})


@pytest.fixture
def cache(workspace: Path) -> Path:
    return workspace / "cache"


def age(root: Path) -> None:
    """Waits until the files' stamps are old enough to be trusted."""
    newest = max(max(path.stat().st_mtime, path.stat().st_ctime) for path in root.rglob("*"))
    time.sleep(max(0.0, newest + 2.1 - time.time()))


def test_a_moved_folder_has_the_same_fingerprint_and_key(pets: Path, cache: Path) -> None:
    before = fingerprint(folder(pets), cache)
    moved = pets.rename(pets.parent / "moved")
    assert fingerprint(folder(moved), cache) == before
    assert folder(moved).identity() == folder(pets).identity()


def test_a_moved_data_set_is_reused_and_found_at_its_new_place(build: Build, pets: Path, cache: Path) -> None:
    artifact = build(folder(pets), cache)
    moved = pets.rename(pets.parent / "moved")
    again = build(folder(moved), cache)
    assert again.key == artifact.key
    shutil.rmtree(cache / "decoded")
    pool = Dataset.open(again, cache).pool("labeled")
    assert pool.images(np.arange(len(pool))).any()


def test_every_change_of_contents_changes_the_fingerprint(pets: Path, cache: Path, paint: Painter) -> None:
    seen = [fingerprint(folder(pets), cache)]
    for change in (
        lambda: paint(pets / "cat" / "new.png", 900),
        lambda: paint(pets / "cat" / "new.png", 901),
        lambda: (pets / "cat" / "new.png").rename(pets / "dog" / "new.png"),
        lambda: (pets / "emu").mkdir(),
    ):
        change()
        seen.append(fingerprint(folder(pets), cache))
    assert len(set(seen)) == 5
    (pets / "dog" / "new.png").unlink()
    (pets / "emu").rmdir()
    assert fingerprint(folder(pets), cache) == seen[0]


def test_only_new_and_changed_files_are_read(pets: Path, cache: Path, paint: Painter) -> None:
    age(pets)
    fingerprint(folder(pets), cache)
    paint(pets / "unlabeled" / "new.png", 902)
    paint(pets / "cat" / "00.png", 903)
    files = FileDigests(cache)
    open_source(folder(pets).source, cache).fingerprint(files)
    assert files.read == 2


def test_a_table_among_its_images_is_read_once_with_them(pets: Path, cache: Path) -> None:
    names = [path.relative_to(pets).as_posix() for path in sorted(pets.glob("[cd]*/*.png"))]
    (pets / "list.csv").write_text("image,label\n" + "".join(f"{name},{name[:3]}\n" for name in names))
    settings = DataSettings.model_validate({"source": {"name": "table", "path": pets / "list.csv"}})
    assert read_by_the_second_of_two_fingerprints(settings, pets, cache) == 0


def test_a_list_of_unlabelled_images_among_the_classes_is_read_once_with_them(pets: Path, cache: Path) -> None:
    (pets / "list.txt").write_text("".join(f"unlabeled/{number:02d}.png\n" for number in range(6)))
    settings = DataSettings.model_validate({"source": {"name": "folder", "path": pets, "unlabeled": pets / "list.txt"}})
    assert read_by_the_second_of_two_fingerprints(settings, pets, cache) == 0


def read_by_the_second_of_two_fingerprints(settings: DataSettings, root: Path, cache: Path) -> int:
    age(root)
    fingerprint(settings, cache)
    files = FileDigests(cache)
    open_source(settings.source, cache).fingerprint(files)
    return files.read


def test_files_that_are_gone_are_forgotten(pets: Path, cache: Path, paint: Painter) -> None:
    age(pets)
    FileDigests(cache).of(pets, ["cat/00.png", "cat/01.png"])
    (pets / "cat" / "00.png").unlink()
    FileDigests(cache).of(pets, ["cat/02.png"])
    (memory,) = (cache / "digests").iterdir()
    assert sorted(pq.read_table(memory)["name"].to_pylist()) == ["cat/01.png", "cat/02.png"]


def test_a_file_changed_within_its_time_stamp_is_noticed(pets: Path, cache: Path, paint: Painter) -> None:
    before = fingerprint(folder(pets), cache)
    victim = pets / "cat" / "00.png"
    stat = victim.stat()
    data = bytearray(victim.read_bytes())
    data[-20] ^= 1
    victim.write_bytes(data)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(folder(pets), cache) != before


def test_a_damaged_memory_only_costs_reading(pets: Path, cache: Path) -> None:
    before = fingerprint(folder(pets), cache)
    for memory in (cache / "digests").iterdir():
        memory.write_bytes(b"damaged")
    assert fingerprint(folder(pets), cache) == before


def test_a_table_depends_on_the_files_it_names(pets: Path, cache: Path, paint: Painter) -> None:
    (pets / "list.csv").write_text("image,label\ncat/00.png,cat\ndog/00.png,dog\n")
    settings = DataSettings.model_validate({"source": {"name": "table", "path": pets / "list.csv"}})
    before = fingerprint(settings, cache)
    paint(pets / "cat" / "01.png", 904)
    assert fingerprint(settings, cache) == before
    paint(pets / "cat" / "00.png", 904)
    assert fingerprint(settings, cache) != before


def test_added_unlabelled_images_change_the_unlabelled_part_alone(
    build: Build, pets: Path, cache: Path, paint: Painter
) -> None:
    settings = folder(pets, split={"labels_per_class": 3})
    before = build(settings, cache)
    paint(pets / "unlabeled" / "0 comes first.png", 905)
    paint(pets / "unlabeled" / "zz comes last.png", 906, size=(30, 20), mode="L")
    after = build(settings, cache)
    same = {name for name in before.parts if before.parts[name] == after.parts[name]}
    assert same == {"labeled", "validation", "test"}
    assert after.summary["decoded"] == 2
    ids = [Dataset.open(artifact, cache).pool("unlabeled").sample_ids() for artifact in (before, after)]
    assert [name for name in ids[1] if name in set(ids[0])] == ids[0]


def test_a_hidden_label_is_in_no_part(build: Build, pets: Path, cache: Path) -> None:
    settings = folder(pets, split={"labels_per_class": 3, "test": 0})
    before = build(settings, cache)
    assert set(pq.read_table(before.file("truth.parquet"))["label"].to_pylist()) == {0, 1}
    rows = pq.read_table(before.file("manifest.parquet")).to_pylist()
    assert {row["label"] for row in rows if row["split"] == "unlabeled"} == {-1}


def test_the_same_source_gives_the_same_bytes_with_any_thread_count(pets: Path, tmp_path: Path) -> None:
    digests = set()
    for threads in (1, 3):
        request = Request("dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", folder(pets))
        digests.add(execute(request, tmp_path / f"{threads}", RuntimeSettings(threads=threads)).artifact.digest)
    assert len(digests) == 1
