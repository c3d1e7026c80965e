"""FGSM and common corruptions."""

import numpy as np
import pytest
import torch
from torch import nn

from selftrain.models import ModelSettings, build_model
from selftrain.ssl_tasks.evaluation.metrics import corruption_errors
from selftrain.ssl_tasks.evaluation.robustness import (
    CORRUPTIONS,
    SEVERITIES,
    attack_accuracy,
    corrupt,
    corruption_accuracy,
    fgsm,
)
from selftrain.ssl_tasks.trained.model import Card, Trained, as_trained

SIZES = [(8, 1), (32, 3), (33, 3)]


def photographs(size: int, channels: int, count: int = 4) -> np.ndarray:
    """Smooth images with some structure."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(6 * x * (n + 1)) * np.cos(5 * y) for n in range(count)]
    images = np.stack([np.stack([wave * 0.4 + 0.3 + 0.1 * c for c in range(channels)], -1) for wave in waves])
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


class Numbered:
    """A pool in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = images, labels

    def images(self, index: np.ndarray) -> np.ndarray:
        return self.pixels[index]


@pytest.fixture(scope="module")
def threshold() -> tuple[Trained, Numbered]:
    """A linear network that tells bright images from dark ones, and a pool of both."""
    card = Card(
        model=ModelSettings(name="mlp"),
        classes=("dark", "bright"),
        in_channels=1,
        image_size=4,
        mean=(0.5,),
        std=(0.25,),
    )
    network = build_model(card.model, 2, 1, 4)
    network.body, network.head = nn.Flatten(), nn.Linear(16, 2)  # type: ignore[assignment]
    with torch.no_grad():
        network.head.weight.copy_(torch.stack([-torch.ones(16), torch.ones(16)]))
        network.head.bias.zero_()
    brightness = np.linspace(0.05, 0.95, 20)
    pixels = np.round(brightness * 255).astype(np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    return as_trained(network, card, "cpu", "fp32"), Numbered(pixels, (brightness > 0.5).astype(np.int64))


@pytest.mark.parametrize(("size", "channels"), SIZES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_shape_and_type_and_change_the_image(name: str, size: int, channels: int) -> None:
    images = photographs(size, channels)
    for severity in SEVERITIES:
        spoilt = corrupt(images, name, severity, np.arange(4))
        assert spoilt.shape == images.shape
        assert spoilt.dtype == np.uint8
        assert (spoilt != images).any()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_five_is_worse_than_one(name: str) -> None:
    images = photographs(32, 3, count=8)
    mild, severe = (corrupt(images, name, severity, np.arange(8)).astype(float) - images for severity in (1, 5))
    assert (severe**2).mean() > (mild**2).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_an_image_suffers_depends_on_its_number_and_not_on_its_batch(name: str) -> None:
    images = photographs(16, 3)
    whole = corrupt(images, name, 3, np.arange(4), seed=7)
    parts = [corrupt(images[[one]], name, 3, np.array([one]), seed=7) for one in range(4)]
    assert (whole == np.concatenate(parts)).all()


def test_noise_of_another_seed_is_other_noise() -> None:
    images = photographs(16, 3)
    first, second = (corrupt(images, "gaussian_noise", 1, np.arange(4), seed) for seed in (0, 1))
    assert (first != second).mean() > 0.9


def test_gaussian_noise_has_the_strength_of_its_severity() -> None:
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    spoilt = corrupt(grey, "gaussian_noise", 1, np.arange(1)).astype(float) / 255
    assert spoilt.std() == pytest.approx(0.08, rel=0.05)


def test_blurs_keep_a_constant_image() -> None:
    grey = np.full((1, 32, 32, 3), 90, np.uint8)
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "contrast", "pixelate"):
        assert (corrupt(grey, name, 5, np.arange(1)) == 90).all(), name


def test_fgsm_moves_every_pixel_by_the_step_against_the_label() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    weight = torch.tensor([[1.0, -1.0, 2.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    with torch.no_grad():
        network[1].weight.copy_(weight)  # type: ignore[operator]
    images = torch.full((1, 1, 2, 2), 0.5)
    attacked = fgsm(network, images, torch.tensor([0]), 0.1, torch.zeros(1), torch.ones(1))
    assert torch.allclose(attacked.flatten(), torch.tensor([0.4, 0.6, 0.4, 0.6]))


def test_fgsm_stays_within_black_and_white() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    attacked = fgsm(network, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), 5.0, torch.tensor(0.0), torch.tensor(1.0))
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_attack_of_a_linear_model_flips_exactly_the_images_within_its_step(
    threshold: tuple[Trained, Numbered],
) -> None:
    trained, pool = threshold
    found = attack_accuracy(trained, pool, np.arange(20), (0.0, 0.1, 0.5), batch_size=7)
    margin = np.abs(pool.pixels[:, 0, 0, 0] / 255 - 0.5)
    assert [one["accuracy"] for one in found] == [1.0, (margin > 0.1).mean(), 0.0]


def test_corruption_accuracy_has_every_cell_and_does_not_depend_on_the_batch_size(
    threshold: tuple[Trained, Numbered],
) -> None:
    trained, pool = threshold
    ticks: list[str] = []
    found = corruption_accuracy(trained, pool, np.arange(20), batch_size=20, tick=ticks.append)
    assert found == corruption_accuracy(trained, pool, np.arange(20), batch_size=3)
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(CORRUPTIONS, 5)
    assert ticks == list(CORRUPTIONS)
    errors = corruption_errors(found)
    assert sum(errors["brightness"]) > 0  # dark images become bright
    assert sum(errors["pixelate"]) == 0  # of constant images
