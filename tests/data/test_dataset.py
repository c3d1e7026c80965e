"""The dataset stage on the built-in digits, and what its pools give."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from selftrain.ssl_tasks.data.dataset import Dataset, PoolName
from selftrain.ssl_tasks.data.loading import normalise
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

BODY = "selftrain.ssl_tasks.data.dataset:build_dataset"
POOLS: tuple[PoolName, ...] = ("labeled", "unlabeled", "validation", "test")


@pytest.fixture
def digits(run_stage: Callable[..., Artifact]) -> Artifact:
    return run_stage(BODY, DataSettings(split=SplitSettings(labels_per_class=5)))


def test_digits_have_the_labels_that_were_asked_for(digits: Artifact, workspace: Path) -> None:
    data = Dataset.open(digits, workspace / "cache")
    assert (data.num_classes, data.channels, data.image_size, data.flip) == (10, 1, 8, False)
    assert np.bincount(data.pool("labeled").labels).tolist() == [5] * 10
    assert sum(len(data.pool(name)) for name in ("unlabeled", "validation", "test")) == 1797


def test_pool_gives_the_pixels_of_its_samples_in_any_process(digits: Artifact, workspace: Path) -> None:
    from sklearn.datasets import load_digits

    original = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    for name in POOLS:
        pool = Dataset.open(digits, workspace / "cache").pool(name)
        index = np.array([3, 0, 3])
        numbers = [int(sample.rpartition("/")[2]) for sample in pool.sample_ids(index)]
        assert (pool.images(index) == original[numbers]).all()
        assert (pickle.loads(pickle.dumps(pool)).images(index) == original[numbers]).all()


def test_hidden_labels_are_in_the_truth_and_nowhere_else(digits: Artifact, workspace: Path) -> None:
    pool = Dataset.open(digits, workspace / "cache").pool("unlabeled")
    manifest = pq.read_table(digits.file("manifest.parquet")).to_pandas()
    assert set(pool.labels.tolist()) == {-1}
    assert set(manifest[manifest["split"] == "unlabeled"]["label"]) == {-1}
    assert pool.truth().min() == 0
    digits.file("truth.parquet").write_bytes(b"")
    Dataset.open(digits, workspace / "cache").pool("unlabeled").images(np.arange(len(pool)))  # needs no truth


@pytest.mark.parametrize("standardise", [True, False])
def test_pixels_are_standardised_or_stay_between_zero_and_one(
    run_stage: Callable[..., Artifact], workspace: Path, standardise: bool
) -> None:
    data = DataSettings(split=SplitSettings(labels_per_class=5), standardise=standardise)
    dataset = Dataset.open(run_stage(BODY, data), workspace / "cache")
    assert ((dataset.mean, dataset.std) == ((0.0,), (1.0,))) != standardise
    pool = dataset.pool("labeled")
    images = torch.from_numpy(pool.images(np.arange(len(pool))))
    pixels = normalise(images, torch.device("cpu"), dataset.mean, dataset.std)
    assert (pixels.min().item(), pixels.max().item()) == (
        (0, 1) if not standardise else pytest.approx((-0.8, 1.8), abs=0.2)
    )
