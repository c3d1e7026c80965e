"""Each source lists its samples and can read all that it lists."""

import io
import struct
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
from selftrain.ssl_tasks.data.survey import check_data
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.data import DataSettings

Build = Callable[..., Any]
Painter = Callable[..., Path]


@pytest.fixture
def cache(workspace: Path) -> Path:
    return workspace / "cache"


def settings_of(source: dict[str, Any], **settings: Any) -> DataSettings:
    return DataSettings.model_validate({"source": source, **settings})


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(number: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(number))))


def test_folder_reads_classes_unlabelled_and_test(build: Build, pets: Path, cache: Path) -> None:
    artifact = build(settings_of({"name": "folder", "path": pets}, split={"labels_per_class": 2}), cache)
    data = Dataset.open(artifact, cache)
    assert (data.classes, data.image_size, data.channels) == (("cat", "dog"), 8, 3)
    assert data.pool("test").sample_ids() == [f"test/{label}/{n:02d}.png" for label in ("cat", "dog") for n in (0, 1)]
    assert {f"unlabeled/{number:02d}.png" for number in range(6)} < set(data.pool("unlabeled").sample_ids())
    pool = data.pool("test")
    expected = np.stack([np.asarray(Image.open(pets / name)) for name in pool.sample_ids()])
    assert (pool.images(np.arange(4)) == expected).all()


def test_folder_takes_unlabelled_images_and_test_from_elsewhere(
    build: Build, pets: Path, cache: Path, tmp_path: Path, paint: Painter
) -> None:
    paint(tmp_path / "pool" / "deep" / "a.png", 1)
    paint(tmp_path / "pool" / "b.png", 2)
    (tmp_path / "pool" / "list.txt").write_text("deep/a.png\n\n  b.png\n")
    for label in ("cat", "dog"):
        paint(tmp_path / "exam" / label / "0.png", 3 if label == "cat" else 4)
    source = {"name": "folder", "path": pets, "test": tmp_path / "exam", "unlabeled": tmp_path / "pool" / "list.txt"}
    data = Dataset.open(build(settings_of(source, split={"unlabeled_includes_labeled": False}), cache), cache)
    assert data.pool("unlabeled").sample_ids() == ["unlabeled/deep/a.png", "unlabeled/b.png"]
    assert data.pool("test").sample_ids() == ["test/cat/0.png", "test/dog/0.png"]


def test_a_class_named_by_a_number_is_sorted_by_its_value(
    build: Build, cache: Path, tmp_path: Path, paint: Painter
) -> None:
    for label in ("10", "9", "2"):
        for number in range(4):
            paint(tmp_path / "numbers" / label / f"{number}.png", int(label) * 10 + number)
    artifact = build(settings_of({"name": "folder", "path": tmp_path / "numbers"}), cache)
    assert Dataset.open(artifact, cache).classes == ("2", "9", "10")


def test_size_and_channels_follow_the_labelled_images(cache: Path, tmp_path: Path, paint: Painter) -> None:
    for label, side in (("a", 10), ("b", 20), ("c", 30)):
        for number in range(4):
            paint(tmp_path / "set" / label / f"{number}.png", side + number, size=(side, 2 * side), mode="L")
    paint(tmp_path / "set" / "unlabeled" / "colour.png", 1, size=(500, 500))
    grey = check_data(settings_of({"name": "folder", "path": tmp_path / "set"}), cache)
    assert (grey.image_size, grey.channels) == (20, 1)
    paint(tmp_path / "set" / "a" / "0.png", 2, size=(2000, 2000))
    paint(tmp_path / "set" / "b" / "0.png", 2, size=(2000, 2000), mode="P")
    mixed = check_data(settings_of({"name": "folder", "path": tmp_path / "set"}, image_size=7), cache)
    assert (mixed.image_size, mixed.channels) == (7, 3)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_table_reads_bytes_of_images(build: Build, cache: Path, tmp_path: Path, kind: str) -> None:
    blobs: list[Any] = [png(number) for number in range(3000)]
    column = pa.array([{"bytes": blob, "path": None} for blob in blobs]) if kind == "struct" else pa.array(blobs, kind)
    table = pa.table({"image": column, "label": pa.array([n % 2 for n in range(3000)], pa.int16())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    data = Dataset.open(build(settings_of({"name": "table", "path": tmp_path / "a.parquet"}), cache), cache)
    assert data.classes == ("0", "1")
    pool = data.pool("unlabeled")
    index = np.array([len(pool) - 1, 5, 1500])
    rows = [int(sample) for sample in pool.sample_ids(index)]
    assert (pool.images(index) == np.stack([pixels(row) for row in rows])).all()


def test_table_keeps_its_test_rows_apart(build: Build, cache: Path, tmp_path: Path) -> None:
    for name, start in (("train", 0), ("test", 100)):
        rows = {"image": [png(start + n) for n in range(20)], "name": pd.Categorical(["b", "a"] * 10)}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")
    source = {
        "name": "table",
        "path": tmp_path / "train.parquet",
        "test_path": tmp_path / "test.parquet",
        "label": "name",
    }
    data = Dataset.open(build(settings_of(source), cache), cache)
    test = data.pool("test")
    assert data.classes == ("a", "b")
    assert test.sample_ids() == [f"test/{n:09d}" for n in range(20)]
    assert test.labels.tolist() == [1, 0] * 10
    assert (test.images(np.array([7]))[0] == pixels(107)).all()


def test_table_takes_splits_ids_and_gaps_from_its_columns(build: Build, pets: Path, cache: Path) -> None:
    parts = ["", "train", "test", "", "validation", "unlabeled"]
    rows: dict[str, list[Any]] = {
        "image": [f"{label}/{n:02d}.png" for label in ("cat", "dog") for n in range(6)],
        "label": [0, None, 0, -1, 0, 0, 1, 1, None, 1, 1, 1],
        "part": [*parts, "", "train", "train", "", "validation", "unlabeled"],
        "key": [f"k{n}" for n in range(12)],
    }
    pd.DataFrame(rows).to_csv(pets / "list.csv", index=False)
    source = {"name": "table", "path": pets / "list.csv", "split": "part", "id": "key"}
    settings = settings_of(source, split={"unlabeled_includes_labeled": False}, classes=("cat", "dog"))
    data = Dataset.open(build(settings, cache), cache)
    assert data.pool("labeled").sample_ids() == ["k0", "k6", "k7", "k9"]
    assert data.pool("labeled").labels.tolist() == [0, 1, 1, 1]
    assert data.pool("unlabeled").sample_ids() == ["k1", "k3", "k5", "k8", "k11"]
    assert data.pool("unlabeled").truth().tolist() == [-1, -1, 0, -1, 1]
    assert data.pool("test").sample_ids() == ["k2"]
    assert data.pool("validation").sample_ids() == ["k4", "k10"]


def test_csv_labels_stay_the_text_that_they_are(pets: Path, cache: Path) -> None:
    names = [f"{label}/{n:02d}.png" for label in ("cat", "dog") for n in range(6)]
    pd.DataFrame({"image": names, "label": ["007"] * 6 + ["NA"] * 6}).to_csv(pets / "list.csv", index=False)
    assert check_data(settings_of({"name": "table", "path": pets / "list.csv"}), cache).classes == ("007", "NA")


def synthetic(**source: Any) -> DataSettings:
    return settings_of({"name": "synthetic", "size": 200, "test_size": 40, "image_size": 16, **source})


def test_synthetic_images_depend_on_their_number_alone(build: Build, cache: Path) -> None:
    small, large = (Dataset.open(build(synthetic(size=size), cache), cache).pool("test") for size in (200, 5000))
    assert small.sample_ids() == large.sample_ids()
    assert (small.images(np.arange(40)) == large.images(np.arange(40))).all()
    assert (small.images(np.array([31, 4])) == small.images(np.arange(40))[[31, 4]]).all()


def test_synthetic_images_differ_and_look_like_their_class(build: Build, cache: Path) -> None:
    data = Dataset.open(build(synthetic(classes=16, size=800, noise=0.1), cache), cache)
    train, test = data.pool("labeled"), data.pool("test")
    images = train.images(np.arange(len(train))).reshape(len(train), -1).astype(np.float32)
    assert len(np.unique(images, axis=0)) == len(images)
    query = test.images(np.arange(len(test))).reshape(len(test), -1).astype(np.float32)
    nearest = np.argmin(((query[:, None] - images[None]) ** 2).sum(-1), axis=1)
    assert (train.labels[nearest] == test.labels).mean() > 0.5  # one in sixteen by chance


def test_synthetic_images_follow_seed_noise_and_size(build: Build, cache: Path) -> None:
    plain = Dataset.open(build(synthetic(), cache), cache).pool("test").images(np.arange(4))
    for change in ({"seed": 1}, {"noise": 0.0}):
        other = Dataset.open(build(synthetic(**change), cache), cache).pool("test").images(np.arange(4))
        assert (other != plain).any()
    resized = settings_of({"name": "synthetic", "size": 100, "image_size": 16}, image_size=8, channels=1)
    assert Dataset.open(build(resized, cache), cache).pool("test").images(np.arange(3)).shape == (3, 8, 8, 1)


def write_mnist(root: Path, train: int, test: int) -> None:
    """The four files of MNIST's format, with random pixels."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())


def test_torchvision_sets_are_read_from_a_local_folder(build: Build, cache: Path, tmp_path: Path) -> None:
    write_mnist(tmp_path, 100, 20)
    source = {"name": "mnist", "path": tmp_path, "download": False}
    data = Dataset.open(build(settings_of(source), cache), cache)
    assert (data.num_classes, data.image_size, data.channels, data.flip) == (10, 28, 1, False)
    test = data.pool("test")
    assert len(test) == 20
    assert test.labels.tolist() == [number % 10 for number in range(20)]
    expected = np.random.default_rng(20).integers(0, 256, (20, 28, 28), np.uint8)
    assert (test.images(np.arange(20))[..., 0] == expected).all()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10", "fashion_mnist"])
def test_a_torchvision_set_that_is_not_there_names_the_folder_to_fill(tmp_path: Path, cache: Path, name: str) -> None:
    settings = settings_of({"name": name, "path": tmp_path, "download": False})
    with pytest.raises(DataError, match=rf"is not in {tmp_path}\. Put .* into that folder"):
        check_data(settings, cache)


def test_the_identity_of_a_source_holds_no_path(pets: Path) -> None:
    assert settings_of({"name": "folder", "path": pets}).identity()["source"] == {"name": "folder"}
    assert settings_of({"name": "cifar10"}).identity()["source"] == {"name": "cifar10"}
