"""CTAugment: what is drawn from rates, how rates move, and that workers change nothing."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.data.loading import loader
from selftrain.ssl_tasks.data.order import uniform_rows
from selftrain.ssl_tasks.data.stream import BatchStream
from selftrain.ssl_tasks.data.views.ctaugment import (
    BINS,
    LEVELED,
    REFRESH,
    Choice,
    Policy,
    PolicyBoard,
    apply,
    build_policy,
    choose,
    draws,
    fresh_rates,
    moved_rates,
    usable_shares,
)
from selftrain.ssl_tasks.data.views.view import Augmenter, Draws
from selftrain.ssl_tasks.settings.data import AugmentSettings
from selftrain.ssl_tasks.settings.training import TrainSettings
from tests.data.fakes import FakeDataset

NAMES = list(LEVELED)
LEARNT = AugmentSettings(strong="ctaugment")
FIXMATCH = Views(unlabeled=("weak", "strong"))


def numbers(count: int, depth: int = 2) -> np.ndarray:
    return uniform_rows(0, count, draws(depth), 3, "test")


def photograph(size: int = 32, channels: int = 3) -> np.ndarray:
    ramp = np.add.outer(np.linspace(30, 100, size), np.linspace(0, 90, size))[:, :, None]
    noise = np.random.default_rng(0).normal(0, 8, (size, size, channels))
    return (ramp + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1), (1, 1)])
def test_operations_keep_shape_and_type_at_every_level(name: str, size: int, channels: int) -> None:
    image = photograph(size, channels)
    for level in (0.0, 0.5, 0.999):
        changed = LEVELED[name](image, level, [0.4, 0.6])
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8


@pytest.mark.parametrize("name", ["autocontrast", "blur", "cutout", "equalize", "invert", "rescale", "smooth"])
def test_blends_do_nothing_at_level_zero_and_all_at_level_one(name: str) -> None:
    image = photograph()
    assert np.array_equal(LEVELED[name](image, 0.0, [0.5, 0.5]), image)
    assert not np.array_equal(LEVELED[name](image, 0.999, [0.5, 0.5]), image)
    if name == "invert":
        assert np.array_equal(LEVELED[name](image, 1.0, [0.5, 0.5]), 255 - image)


def test_bins_far_below_the_best_are_not_drawn() -> None:
    rates = fresh_rates()
    rates[:, 5:] = 0.5
    choice = choose(rates, numbers(2000), 2)
    assert choice.bins.max() == 4
    assert set(choice.operations.ravel()) == set(range(len(NAMES)))
    assert (np.floor(choice.levels * BINS) == choice.bins).all()


def test_usable_bins_are_drawn_in_proportion_to_their_rates() -> None:
    rates = np.full((1, BINS), 0.1, np.float32)
    rates[0, :2] = 0.99, 0.89
    shares = usable_shares(rates)
    assert shares[0, :2] == pytest.approx([1 / 1.9, 0.9 / 1.9])
    assert (shares[0, 2:] == 0).all()
    assert usable_shares(np.zeros((1, BINS), np.float32))[0] == pytest.approx(np.full(BINS, 1 / BINS))


def test_probes_draw_every_bin_alike() -> None:
    counts = np.bincount(choose(None, numbers(8500), 2).bins.ravel(), minlength=BINS)
    assert ((counts - 1000) ** 2 / 1000).sum() < 39.3  # χ² with 16 degrees of freedom, p = .001


def test_the_choice_is_what_is_applied() -> None:
    image = photograph()
    operations = np.array([[NAMES.index("invert"), NAMES.index("translate_x")]])
    choice = Choice(operations, np.zeros((1, 2), int), np.array([[1.0, 0.5]]), np.zeros((1, 2, 2)))
    assert np.array_equal(apply(image[None], choice)[0], 255 - image)
    cut = apply(image[None], choice, np.array([[0, 0, 32, 16]]))[0]
    assert (cut[:16] == 127).all()
    assert np.array_equal(cut[16:], 255 - image[16:])


@pytest.mark.parametrize(("settings", "area"), [({}, 196), ({"cutout_side": "random"}, 72), ({"cutout": 0}, 0)])
def test_fixmatch_cuts_out_a_fixed_square_afterwards_and_remixmatch_none(settings: dict, area: float) -> None:
    augmenter = Augmenter(AugmentSettings(strong="ctaugment", operations=0, **settings), flip=False)
    seen = augmenter.view("strong", np.zeros((2000, 32, 32, 1), np.uint8), Draws(0, 2000, 3, ("cut",)))
    assert 1024 * (seen != 0).mean() == pytest.approx(area, rel=0.1)


def test_rates_move_as_one_score_after_the_other() -> None:
    generator = np.random.default_rng(0)
    cells, scores = generator.integers(0, 12, 200), generator.random(200).astype(np.float32)
    rates = generator.random((3, 4)).astype(np.float32)
    expected = rates.astype(np.float64).ravel()
    for cell, score in zip(cells, scores, strict=True):
        expected[cell] = 0.99 * expected[cell] + 0.01 * score
    moved = moved_rates(torch.from_numpy(rates), torch.from_numpy(cells), torch.from_numpy(scores))
    np.testing.assert_allclose(moved.numpy().ravel(), expected, atol=1e-6)


def stream_and_policy(world: int = 1, rank: int = 0) -> tuple[BatchStream, Policy]:
    policy = build_policy(LEARNT, FIXMATCH)
    assert policy is not None
    train = TrainSettings(batch_size=4, unlabeled_ratio=2)
    dataset = FakeDataset()
    return BatchStream(dataset, FIXMATCH, train, LEARNT, 7, rank, world, policy=policy.board), policy


def scores_of(batch: Batch) -> torch.Tensor:
    """Stands for a network that recognises darker images less well."""
    assert batch.probe is not None
    return batch.probe.float().mean((1, 2, 3)) / 255


def run_of(
    workers: int, start: int = 0, stop: int = 5 * REFRESH, policy_state: dict | None = None
) -> tuple[dict, dict]:
    """Views by step, and the policy's state at the end."""
    stream, policy = stream_and_policy()
    if policy_state is not None:
        policy.load_state_dict(policy_state)
    policy.open(start)
    seen = {}
    for step, batch in enumerate(loader(stream, start, stop, workers), start):
        assert batch.probe_choices is not None
        seen[step] = batch.unlabeled[1]
        policy.learn(step + 1, batch.probe_choices, scores_of(batch))
    return seen, policy.state_dict()


@pytest.fixture(scope="module")
def uninterrupted() -> Iterator[tuple[dict, dict]]:
    """A run whose rates move fast enough to matter within a few periods, as they do for the tests that compare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selftrain.ssl_tasks.data.views.ctaugment.DECAY", 0.3)
        yield run_of(workers=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_draw_from_the_same_rates(workers: int, uninterrupted: tuple[dict, dict]) -> None:
    seen, state = run_of(workers)
    assert all(torch.equal(seen[step], view) for step, view in uninterrupted[0].items())
    assert torch.equal(state["rates"], uninterrupted[1]["rates"])


@pytest.mark.parametrize("stop", [3, REFRESH, 2 * REFRESH + 5, 3 * REFRESH - 1])
def test_a_resumed_run_draws_from_the_same_rates(stop: int, uninterrupted: tuple[dict, dict]) -> None:
    _, state = run_of(workers=0, stop=stop)
    seen, end = run_of(workers=0, start=stop, policy_state=state)
    assert all(torch.equal(view, uninterrupted[0][step]) for step, view in seen.items())
    assert all(torch.equal(value, uninterrupted[1][name]) for name, value in end.items())


def test_learnt_rates_change_what_is_drawn(uninterrupted: tuple[dict, dict]) -> None:
    stream, policy = stream_and_policy()  # this one learns nothing
    policy.open(10 * REFRESH)
    alike = [torch.equal(stream[step].unlabeled[1], view) for step, view in uninterrupted[0].items()]
    assert all(alike[: 2 * REFRESH])  # two periods are drawn from the fresh table
    assert not any(alike[2 * REFRESH :])


def test_the_probes_of_the_ranks_are_the_one_process_probes() -> None:
    whole = stream_and_policy()[0][1]
    parts = [stream_and_policy(2, rank)[0][1] for rank in range(2)]
    assert whole.probe is not None
    assert whole.probe_choices is not None
    assert whole.probe_choices.shape == (4, 2, 2)
    assert torch.equal(torch.cat([part.probe for part in parts if part.probe is not None]), whole.probe)
    assert torch.equal(torch.cat([p.probe_choices for p in parts if p.probe_choices is not None]), whole.probe_choices)


def test_there_is_a_policy_only_where_strong_views_learn() -> None:
    assert build_policy(LEARNT, Views()) is None
    assert build_policy(AugmentSettings(), FIXMATCH) is None
    assert isinstance(build_policy(LEARNT, FIXMATCH), Policy)


def test_a_worker_whose_trainer_is_gone_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([1, 1, 2])
    monkeypatch.setattr("os.getppid", lambda: next(parents))
    with pytest.raises(SystemExit):
        PolicyBoard().at(2 * REFRESH)
