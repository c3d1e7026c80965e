"""The batch stream is a pure function of (seed, step, rank)."""

import dataclasses
import pickle
import signal
import time

import numpy as np
import psutil
import pytest
import torch

from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.data.loading import StreamPools, loader, to_device
from selftrain.ssl_tasks.data.stream import BatchStream, PseudoPool
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.data import AugmentSettings
from selftrain.ssl_tasks.settings.training import TrainSettings
from tests.clock import HANG
from tests.data.fakes import FakeDataset

FIXMATCH = Views(labeled=("weak",), unlabeled=("weak", "strong"))
ALL = Views(labeled=("weak", "none"), unlabeled=("weak", "strong", "strong"), pseudo=("strong",))
SELECTION = PseudoPool(np.array([3, 7, 20]), np.array([1, 2, 0]), np.array([1, 3, 0]))


def stream_of(views: Views = FIXMATCH, seed: int = 5, rank: int = 0, world: int = 1, **options: object) -> BatchStream:
    train = {"batch_size": 6, "unlabeled_ratio": 3, "steps": 40}
    selection = options.pop("selection", SELECTION if views.pseudo else None)
    dataset = options.pop("dataset", None) or FakeDataset()
    settings = TrainSettings(**{**train, **options})
    return BatchStream(dataset, views, settings, AugmentSettings(), seed, rank, world, selection)  # type: ignore[arg-type]


def tensors(batch: Batch) -> list[torch.Tensor]:
    values = [getattr(batch, item.name) for item in dataclasses.fields(batch)]
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return [part for part in parts if part is not None]


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(tensors(one), tensors(other), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_batches_hold_what_the_views_ask_for() -> None:
    batch = stream_of(ALL)[2]
    assert [tuple(view.shape) for view in batch.labeled] == [(6, 8, 8, 3)] * 2
    assert [tuple(view.shape) for view in batch.unlabeled] == [(18, 8, 8, 3)] * 3
    assert batch.pseudo[0].shape == (18, 8, 8, 3)
    assert batch.pseudo_targets.shape == (18, 4)
    assert all(view.dtype == torch.uint8 for view in (*batch.labeled, *batch.unlabeled, *batch.pseudo))


def test_any_order_of_access_gives_the_same_batches() -> None:
    forwards, backwards = stream_of(ALL), stream_of(ALL)
    expected = {step: forwards[step] for step in range(8)}
    assert all(same(backwards[step], expected[step]) for step in reversed(range(8)))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_resuming_change_nothing(workers: int) -> None:
    stream = stream_of(ALL)
    batches = list(loader(stream, 3, 9, workers=workers))
    assert len(batches) == 6
    assert all(same(batch, stream[step]) for step, batch in enumerate(batches, start=3))


def test_no_worker_outlives_its_iterator() -> None:
    before = set(psutil.Process().children())
    batches = loader(stream_of(), 0, 40, workers=2)
    next(batches)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    del batches
    assert psutil.wait_procs(workers, timeout=HANG)[1] == []


def test_a_signal_to_all_leaves_the_workers_at_work() -> None:
    before = set(psutil.Process().children())
    batches = loader(stream_of(), 0, 40, workers=1)
    next(batches)
    for worker in set(psutil.Process().children()) - before:
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
    assert len(list(batches)) == 39


class StuckStream(BatchStream):
    """Batches that take for ever, from step 1 on."""

    def __getitem__(self, step: int) -> Batch:
        time.sleep(3600 * (step > 0))
        return super().__getitem__(step)


def test_a_worker_that_hangs_ends_with_its_second_signal() -> None:
    train = TrainSettings(batch_size=2)
    before = set(psutil.Process().children())
    batches = loader(StuckStream(FakeDataset(), Views(), train, AugmentSettings(), 0), 0, 9, workers=1)
    next(batches)
    (worker,) = set(psutil.Process().children()) - before
    worker.send_signal(signal.SIGTERM)
    with pytest.raises(psutil.TimeoutExpired):
        worker.wait(0.3)
    worker.send_signal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
        next(batches)  # rather than a wait without end


def test_a_pickled_stream_is_the_same_stream() -> None:
    stream = stream_of(ALL)
    assert same(pickle.loads(pickle.dumps(stream))[4], stream[4])


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_ranks_together_are_the_one_process_batch(world: int) -> None:
    whole = tensors(stream_of(ALL)[7])
    parts = [tensors(stream_of(ALL, rank=rank, world=world)[7]) for rank in range(world)]
    for number, tensor in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in parts]), tensor)


def test_seeds_differ() -> None:
    assert not same(stream_of(seed=1)[0], stream_of(seed=2)[0])
    assert not torch.equal(stream_of(seed=1)[0].labeled_index, stream_of(seed=2)[0].labeled_index)


def test_two_views_of_one_kind_are_drawn_apart() -> None:
    batch = stream_of(Views(unlabeled=("weak", "weak")))[0]
    assert not torch.equal(*batch.unlabeled)


def test_an_epoch_shows_every_sample_once() -> None:
    stream = stream_of(Views(unlabeled=("none",)))
    labeled = torch.cat([stream[step].labeled_index for step in range(5)])  # 30 draws from 10
    unlabeled = torch.cat([stream[step].unlabeled_index for step in range(25)])  # 450 draws from 50
    assert all(sorted(labeled[at : at + 10].tolist()) == list(range(10)) for at in (0, 10, 20))
    assert all(sorted(unlabeled[at : at + 50].tolist()) == list(range(50)) for at in range(0, 450, 50))
    assert labeled[:10].tolist() != labeled[10:20].tolist()


def test_images_labels_and_truth_belong_together() -> None:
    dataset = FakeDataset()
    batch = stream_of(Views(labeled=("none",), unlabeled=("none",)), dataset=dataset)[3]
    labeled, unlabeled = dataset.pool("labeled"), dataset.pool("unlabeled")
    assert np.array_equal(batch.labeled[0], labeled.pixels[batch.labeled_index])
    assert np.array_equal(batch.labels, labeled.labels[batch.labeled_index])
    assert np.array_equal(batch.unlabeled[0], unlabeled.pixels[batch.unlabeled_index])
    assert np.array_equal(batch.unlabeled_truth, unlabeled.true[batch.unlabeled_index])


def test_copies_are_shown_in_proportion() -> None:
    stream = stream_of(Views(pseudo=("none",)), batch_size=4, unlabeled_ratio=1)
    shown = torch.cat([stream[step].pseudo_index for step in range(10)])  # ten epochs of four copies
    assert torch.bincount(shown, minlength=3).tolist() == [10, 30, 0]
    images = stream.unlabeled.images(SELECTION.positions[stream[0].pseudo_index])
    assert np.array_equal(stream[0].pseudo[0], images)


def test_hard_pseudo_labels_become_one_hot_targets_and_soft_ones_stay() -> None:
    hard = stream_of(Views(pseudo=("none",)))[0]
    assert torch.equal(hard.pseudo_targets.argmax(1), torch.from_numpy(SELECTION.labels)[hard.pseudo_index])
    assert torch.equal(hard.pseudo_targets.sum(1), torch.ones(18))
    probs = np.random.default_rng(0).dirichlet(np.ones(4), 3).astype(np.float32)
    soft = stream_of(Views(pseudo=("none",)), selection=dataclasses.replace(SELECTION, probs=probs))[0]
    assert np.array_equal(soft.pseudo_targets, probs[soft.pseudo_index])


def test_a_selection_joins_the_labelled_pool_where_no_pseudo_view_is_asked_for() -> None:
    stream = stream_of(Views(labeled=("none",)), selection=SELECTION, batch_size=14)  # 10 labelled + 4 copies
    batch = stream[0]
    assert torch.bincount(batch.labeled_index, minlength=13).tolist() == [1] * 10 + [1, 3, 0]
    selected = batch.labeled_index >= 10
    assert np.array_equal(batch.labels[selected], SELECTION.labels[batch.labeled_index[selected] - 10])
    positions = SELECTION.positions[batch.labeled_index[selected] - 10]
    assert np.array_equal(batch.labeled[0][selected], stream.unlabeled.images(positions))


def test_class_balance_shows_every_class_alike() -> None:
    stream = stream_of(Views(labeled=("none",)), class_balanced=True, selection=SELECTION)
    labels = torch.cat([stream[step].labels for step in range(30)])
    assert np.ptp(stream.labeled.counts(4)[:3]) > 0  # the pool itself is not balanced
    assert torch.bincount(labels, minlength=4).tolist() == [60, 60, 60, 0]


@pytest.mark.parametrize("kind", ["inverse", "effective"])
def test_label_weights_favour_rare_classes_and_average_one(kind: str) -> None:
    stream = stream_of(Views(labeled=("none",)), class_weights=kind, batch_size=10, selection=SELECTION)
    batch = stream_of(Views(labeled=("none",)), class_weights=kind, batch_size=14, selection=SELECTION)[0]
    assert batch.label_weights is not None
    assert batch.label_weights.mean().item() == pytest.approx(1, abs=1e-6)
    counts = stream.labeled.counts(4)
    rare, frequent = (int(np.flatnonzero(counts == n)[0]) for n in (counts[counts > 0].min(), counts.max()))
    assert batch.label_weights[batch.labels == rare].min() > batch.label_weights[batch.labels == frequent].max()


def test_a_method_of_stored_pseudo_labels_needs_a_selection() -> None:
    with pytest.raises(ConfigError, match="there is no selection"):
        stream_of(Views(pseudo=("strong",)), selection=None)


def test_two_thousand_steps_cost_no_more_memory_than_two_hundred() -> None:
    stream, process = stream_of(ALL, batch_size=2, unlabeled_ratio=1), psutil.Process()

    def memory_after(start: int, stop: int) -> int:
        for step in range(start, stop):
            stream[step]
        return process.memory_info().rss

    assert memory_after(200, 2000) - memory_after(0, 200) < 2 * 2**20


def test_a_method_of_unlabelled_images_needs_some() -> None:
    with pytest.raises(ConfigError, match="the data set has none"):
        stream_of(dataset=FakeDataset(unlabeled=0))


def test_to_device_normalises_every_view_and_nothing_else() -> None:
    dataset = FakeDataset()
    batch = stream_of(ALL, dataset=dataset)[0]
    moved = to_device(batch, torch.device("cpu"), dataset.mean, dataset.std)
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    expected = ((batch.unlabeled[1].float() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(moved.unlabeled[1], expected, atol=2e-6, rtol=0)
    assert moved.unlabeled[1].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.labels, batch.labels)
    assert torch.equal(moved.pseudo_targets, batch.pseudo_targets)


def test_ordered_passes_show_whole_pools_in_order() -> None:
    dataset = FakeDataset()
    stream = stream_of(Views(labeled=("none",), unlabeled=("none",)), selection=SELECTION, dataset=dataset)
    pools = StreamPools(stream, torch.device("cpu"), dataset.mean, dataset.std, batch_size=16)
    index, images, labels = (torch.cat(parts) for parts in zip(*pools.labeled(), strict=True))
    assert index.tolist() == list(range(13))
    assert np.array_equal(labels, stream.labeled.labels)
    index, images = (torch.cat(parts) for parts in zip(*pools.unlabeled(), strict=True))
    assert index.tolist() == list(range(50))
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    expected = ((torch.from_numpy(dataset.pool("unlabeled").pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(images, expected, atol=2e-6, rtol=0)


def test_augmented_passes_differ_from_step_to_step_and_not_by_batch_size() -> None:
    dataset, cpu = FakeDataset(), torch.device("cpu")
    stream = stream_of(dataset=dataset)

    def pass_of(step: int, batch_size: int) -> torch.Tensor:
        pools = StreamPools(stream, cpu, dataset.mean, dataset.std, batch_size, step)
        return torch.cat([images for _, images in pools.unlabeled("strong")])

    assert torch.equal(pass_of(3, 7), pass_of(3, 50))
    assert not torch.equal(pass_of(3, 7), pass_of(4, 7))
