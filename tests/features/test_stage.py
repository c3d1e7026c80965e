"""The stage `features`, and reading what it stores."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import ConfigError, TrainingDiverged
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.model import load_trained, save_trained
from tests.features.frozen import RUNTIME, features_of, opened
from tests.pseudo_labels.teachers import draw_pictures, from_folder, synthetic, teacher


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, Artifact]:
    """A workspace with a data set and its features."""
    workspace = tmp_path_factory.mktemp("workspace")
    dataset = synthetic(workspace, size=200)
    return workspace, dataset, features_of(workspace, dataset)


def test_a_vector_is_the_networks_own_for_every_image(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, features = prepared
    network = load_trained(features.file("backbone"), "cpu", "fp32")
    stored = opened(workspace, features)
    for split in ("labeled", "unlabeled", "validation", "test"):
        pool = Dataset.open(dataset, workspace / "cache", RUNTIME).pool(split)
        expected = network.features(pool.images(np.arange(len(pool)))).half().numpy()
        found = stored.matrix[stored.rows(pool.column("sample_id"))]
        assert np.allclose(found, expected, rtol=2e-3, atol=1e-3)


def test_plain_pandas_and_duckdb_read_the_shards(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, _, features = prepared
    stored, files = opened(workspace, features), sorted(features.path.glob("shards/*.parquet"))
    table = pd.concat([pd.read_parquet(file) for file in files])
    assert np.array_equal(np.stack(table["features"].to_numpy()), stored.matrix)
    first = duckdb.sql(f"SELECT features[1] FROM read_parquet('{files[0]}') LIMIT 1").fetchall()
    assert first[0][0] == stored.matrix[0, 0]


def test_the_vectors_are_mapped_and_a_lost_or_short_map_is_written_again(
    prepared: tuple[Path, Artifact, Artifact],
) -> None:
    workspace, _, features = prepared
    before = np.array(opened(workspace, features).matrix)
    path = workspace / "cache" / "features" / features.digest
    for damage in (path.unlink, lambda: path.write_bytes(b"short")):
        damage()
        stored = opened(workspace, features)
        assert not stored.matrix.flags.owndata
        assert not stored.matrix.flags.writeable
        assert np.array_equal(stored.matrix, before)


def test_new_images_cost_the_shards_that_they_are_in(tmp_path: Path) -> None:
    names = [f"u{number:03d}" for number in range(200)]
    draw_pictures(tmp_path / "pictures", names)
    first = features_of(tmp_path, from_folder(tmp_path, tmp_path / "pictures"))
    draw_pictures(tmp_path / "pictures", ["u100x"])
    second = features_of(tmp_path, from_folder(tmp_path, tmp_path / "pictures"))
    assert first.summary["shards_reused"] == 0
    assert second.summary["images"] == first.summary["images"] + 1
    assert 1 <= second.summary["shards"] - second.summary["shards_reused"] <= 3


def test_another_split_of_the_same_images_changes_no_vector(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, _, features = prepared
    other = features_of(workspace, synthetic(workspace, size=200, labels_per_class=5))
    assert other.summary["shards_reused"] == other.summary["shards"]
    assert other.key != features.key
    assert {name for name in other.manifest["files"] if name.startswith("shards")} <= set(features.manifest["files"])
    assert other.digest == features.digest, "what depends on the features is reused"


def test_two_views_are_the_mean_of_an_image_and_its_mirror_image(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, features = prepared
    network = load_trained(features.file("backbone"), "cpu", "fp32")
    pool = Dataset.open(dataset, workspace / "cache", RUNTIME).pool("all")
    images = pool.images(np.arange(len(pool)))
    both = (network.features(images) + network.features(images[:, :, ::-1].copy())) / 2
    averaged = opened(workspace, features_of(workspace, dataset, views=2))
    assert np.allclose(averaged.matrix, both.half().numpy(), rtol=2e-3, atol=1e-3)
    assert averaged.backbone != features.summary["backbone"]


def test_more_views_average_weak_views_too_and_repeat(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, features = prepared
    four = features_of(workspace, dataset, views=4)
    assert not np.array_equal(opened(workspace, four).matrix, opened(workspace, features).matrix)
    again = features_of(workspace, synthetic(workspace, size=200, labels_per_class=5), views=4)
    assert again.digest == four.digest


def test_a_trained_model_is_a_backbone(prepared: tuple[Path, Artifact, Artifact], tmp_path: Path) -> None:
    workspace, dataset, features = prepared
    model = teacher(tmp_path / "teacher", seed=3)
    found = features_of(workspace, dataset, init=model)
    expected = load_trained(model.path, "cpu", "fp32")
    pool = Dataset.open(dataset, workspace / "cache", RUNTIME).pool("all")
    own = expected.features(pool.images(np.arange(len(pool)))).half().numpy()
    assert np.allclose(opened(workspace, found).matrix, own, rtol=2e-3, atol=1e-3)
    assert found.summary["backbone"] != features.summary["backbone"]


def test_features_that_are_no_numbers_are_refused(prepared: tuple[Path, Artifact, Artifact], tmp_path: Path) -> None:
    workspace, dataset, _ = prepared
    model = teacher(tmp_path / "teacher")
    broken = load_trained(model.path, "cpu", "fp32")
    next(iter(broken.network.body.parameters())).fill_(float("nan"))
    save_trained(model.path, broken.network, broken.card)
    with pytest.raises(TrainingDiverged, match="are not numbers"):
        features_of(workspace, dataset, init=Artifact(model.path, {**model.manifest, "digest": "broken"}))


def test_images_without_a_vector_are_named(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, _, features = prepared
    other = synthetic(workspace, size=220)
    pool = Dataset.open(other, workspace / "cache", RUNTIME).pool("all")
    with pytest.raises(ConfigError, match="20 images without stored features"):
        opened(workspace, features).rows(pool.column("sample_id"))
