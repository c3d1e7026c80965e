"""Labels that out-of-fold predictions contradict: the formula, and planted mistakes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.features.label_check import left_out_probabilities, suspect_labels, suspects
from tests.features.frozen import RUNTIME, features_of, opened
from tests.pseudo_labels.teachers import draw_pictures, from_folder


def test_the_ranking_is_that_of_the_paper_image_by_image() -> None:
    """Equal to cleanlab 2.9's find_label_issues(filter_by="confident_learning") by self-confidence on 30 such draws."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    scores = random.normal(size=(300, 4)) + 2 * np.eye(4)[np.where(random.random(300) < 0.2, 0, labels)]
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    thresholds = [probs[labels == number, number].mean() for number in range(4)]
    expected = []
    for number, (label, row) in enumerate(zip(labels, probs, strict=True)):
        confident = [one for one in range(4) if row[one] >= thresholds[one]]
        if confident and row.argmax() != label and max(confident, key=lambda one: row[one]) != label:
            expected.append((row[label], number, max(confident, key=lambda one: row[one])))
    found, suggested = suspects(labels, probs)
    assert [(number, other) for _, number, other in sorted(expected)] == list(
        zip(found.tolist(), suggested.tolist(), strict=True)
    )
    assert len(found) > 10


def test_planted_mistakes_come_first() -> None:
    images, truth = load_digits(return_X_y=True)
    images, truth = images[:600].astype(np.float32), truth[:600]
    labels = truth.copy()
    wrong = np.random.default_rng(1).choice(600, 30, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 10
    probs = left_out_probabilities(torch.from_numpy(images), labels, [str(number) for number in range(600)], 10)
    found, suggested = suspects(labels, probs)
    assert np.isin(found[:20], wrong).mean() >= 0.9
    assert (suggested[:20] == truth[found[:20]]).mean() >= 0.9


def test_too_few_labels_of_a_class_are_refused(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", ["u1"])
    for picture in sorted((tmp_path / "pictures" / "class-002").glob("*.png"))[4:]:
        picture.unlink()
    dataset = from_folder(tmp_path, tmp_path / "pictures")
    with pytest.raises(DataError, match=r"class-002 \(4\) cannot be checked: expected 5 labelled images"):
        suspect_labels(
            Dataset.open(dataset, tmp_path / "cache", RUNTIME), opened(tmp_path, features_of(tmp_path, dataset))
        )
