"""The stream over the real data set: digits, decoded and split by the dataset stage."""

from pathlib import Path

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.data.batch import Views
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.loading import loader, to_device
from selftrain.ssl_tasks.data.stream import BatchStream
from selftrain.ssl_tasks.settings.data import AugmentSettings, DataSettings, SplitSettings
from selftrain.ssl_tasks.settings.training import TrainSettings
from tests.conftest import RunStage

FIXMATCH = Views(unlabeled=("weak", "strong"))


@pytest.fixture
def stream(run_stage: RunStage, workspace: Path) -> BatchStream:
    settings = DataSettings(split=SplitSettings(labels_per_class=5))
    dataset = Dataset.open(run_stage("selftrain.ssl_tasks.data.dataset:build_dataset", settings), workspace / "cache")
    return BatchStream(dataset, FIXMATCH, TrainSettings(batch_size=16), AugmentSettings(crop_padding=0), 0)


def test_digits_come_with_their_labels_and_are_never_flipped(stream: BatchStream) -> None:
    batch = stream[0]
    assert batch.labeled[0].shape == (16, 8, 8, 1)
    assert np.array_equal(batch.labeled[0], stream.labeled.images(batch.labeled_index.numpy()))
    assert torch.equal(batch.labels, torch.from_numpy(stream.labeled.labels)[batch.labeled_index])
    assert np.array_equal(batch.unlabeled[0], stream.unlabeled.images(batch.unlabeled_index.numpy()))
    assert (batch.unlabeled_truth >= 0).all()


def test_normalised_batches_have_zero_mean_and_unit_spread(stream: BatchStream) -> None:
    mean, std = (0.3,), (0.37,)  # of all digits, nearly
    moved = [to_device(stream[step], torch.device("cpu"), mean, std).unlabeled[0] for step in range(5)]
    assert abs(torch.cat(moved).mean()) < 0.05
    assert abs(torch.cat(moved).std() - 1) < 0.05


def test_workers_give_the_same_batches(stream: BatchStream) -> None:
    batches = list(loader(stream, 2, 5, workers=2))
    assert len(batches) == 3
    for step, batch in enumerate(batches, 2):
        assert torch.equal(batch.unlabeled[1], stream[step].unlabeled[1])
        assert torch.equal(batch.labels, stream[step].labels)
