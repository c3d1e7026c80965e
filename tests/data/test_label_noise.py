"""Wrong labels on purpose: how many, which, and who knows of them."""

from pathlib import Path

import numpy as np

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.splits import flip_labels
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings
from tests.conftest import RunStage

IDS = [f"image-{number}" for number in range(4000)]
LABELS = (np.arange(4000) % 10).astype(np.int32)


def test_a_flipped_label_is_another_class_and_as_many_flip_as_asked() -> None:
    noisy = flip_labels(LABELS, IDS, 10, 0.4, seed=0)
    wrong = noisy != LABELS
    assert abs(wrong.mean() - 0.4) < 0.03
    assert noisy.min() >= 0
    assert noisy.max() <= 9
    shifts = np.bincount((noisy - LABELS)[wrong] % 10, minlength=10)
    assert shifts[0] == 0
    assert shifts[1:].min() > 0.7 * shifts[1:].mean()


def test_no_noise_flips_nothing_and_another_seed_flips_others() -> None:
    assert np.array_equal(flip_labels(LABELS, IDS, 10, 0.0, seed=0), LABELS)
    assert not np.array_equal(flip_labels(LABELS, IDS, 10, 0.4, 0), flip_labels(LABELS, IDS, 10, 0.4, 1))


def test_more_images_change_no_other_label() -> None:
    whole, part = flip_labels(LABELS, IDS, 10, 0.4, 0), flip_labels(LABELS[::2], IDS[::2], 10, 0.4, 0)
    assert np.array_equal(whole[::2], part)


def test_training_is_told_the_wrong_labels_and_the_audit_knows_the_right_ones(
    run_stage: RunStage, tmp_path: Path
) -> None:
    pools = []
    for noise in (0.0, 0.4):
        settings = DataSettings(split=SplitSettings(label_noise=noise, unlabeled_includes_labeled=False))
        dataset = Dataset.open(
            run_stage("selftrain.ssl_tasks.data.dataset:build_dataset", settings), tmp_path / "cache"
        )
        pools.append({name: dataset.pool(name) for name in ("labeled", "validation", "test")})
    clean, noisy = pools
    assert 0.35 < (clean["labeled"].labels != noisy["labeled"].labels).mean() < 0.45
    assert np.array_equal(noisy["labeled"].truth(), clean["labeled"].labels)
    for name in ("validation", "test"):
        assert np.array_equal(clean[name].labels, noisy[name].labels)
