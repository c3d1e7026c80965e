"""SimCLR's view, against the paper's parameters."""

import numpy as np
import pytest
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.views.augmentation import (
    SIMCLR_DRAWS,
    blurred,
    crop_boxes,
    grey,
    jitter_factors,
    resized_crop,
    simclr_view,
)
from selftrain.ssl_tasks.data.views.view import Augmenter, Draws
from selftrain.ssl_tasks.settings.data import AugmentSettings
from tests.data.test_augmentation import draws_of, photographs

CIFAR = AugmentSettings(strong="simclr", jitter=0.5, blur=0)
STILL = np.full((1, SIMCLR_DRAWS), 0.999)  # the whole image, and nothing else happens
STILL[0, 0] = 1


def uniform(count: int, width: int = SIMCLR_DRAWS) -> NDArray[np.float64]:
    return draws_of(count).uniform(width, "strong")


def test_crops_have_every_area_from_the_smallest_and_ratios_within_3_to_4() -> None:
    top, left, height, width = crop_boxes(uniform(20_000), 224, 0.08).T
    area, ratio = height * width / 224**2, width / height
    assert area.min() == pytest.approx(0.08, abs=0.005)
    assert np.quantile(area, (0.25, 0.5, 0.75)) == pytest.approx([0.31, 0.54, 0.77], abs=0.02)  # alike from .08 to 1
    assert (ratio.min(), ratio.max()) == (pytest.approx(3 / 4, abs=0.03), pytest.approx(4 / 3, abs=0.03))
    assert np.median(np.log(ratio)) == pytest.approx(0, abs=0.02)
    assert min(top.min(), left.min()) == 0
    assert max((top + height).max(), (left + width).max()) == 224
    assert crop_boxes(STILL, 32, 0.08).tolist() == [[0, 0, 32, 32]]


def test_a_crop_becomes_the_whole_image() -> None:
    image = photographs(1)[0]
    assert np.array_equal(resized_crop(image, 0, 0, 32, 32), image)
    halves = np.zeros((32, 32, 1), np.uint8)
    halves[:16] = 200
    assert (resized_crop(halves, 0, 0, 16, 32) == 200).all()
    assert (resized_crop(halves, 16, 3, 16, 9) == 0).all()


@pytest.mark.parametrize(("strength", "reach", "turn"), [(1.0, 0.8, 0.2), (0.5, 0.4, 0.1), (0.0, 0.0, 0.0)])
def test_the_jitter_multiplies_and_turns_as_far_as_its_strength_says(
    strength: float, reach: float, turn: float
) -> None:
    ends = jitter_factors(np.array([[0.0] * 4, [1.0] * 4]), strength)
    assert ends == pytest.approx(np.array([[1 - reach] * 3 + [-turn], [1 + reach] * 3 + [turn]]))


def test_a_factor_is_never_negative() -> None:
    assert jitter_factors(np.zeros((1, 4)), 2.0).tolist() == [[0, 0, 0, -0.4]]


def test_each_part_happens_as_often_as_the_paper_says() -> None:
    """Parts are told apart by what they leave: a colour ramp keeps its colours, its grey, its order or its edge."""
    count = 4000
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = (200, 100, 50)
    images, whole = np.stack([image] * count), uniform(count)
    whole[:, 0] = 1  # every crop is the whole image
    plain = simclr_view(images, whole, True, CIFAR.model_copy(update={"jitter": 0.0}))
    greyed = (np.ptp(plain.astype(int), axis=3).max(axis=(1, 2)) == 0).mean()
    mirrored = (plain[:, 0, 0].max(axis=1) > 0).mean()
    assert (greyed, mirrored) == (pytest.approx(0.2, abs=0.02), pytest.approx(0.5, abs=0.03))
    coloured = simclr_view(images, whole, False, CIFAR)
    same = (coloured[:, 0, 31] == (200, 100, 50)).all(axis=1).mean()
    assert same == pytest.approx(0.2 * 0.8, abs=0.02)
    smooth = simclr_view(images, whole, False, AugmentSettings(strong="simclr", jitter=0, blur=0.5))
    assert (smooth[:, 0, 15].max(axis=1) > 0).mean() == pytest.approx(0.5, abs=0.1)  # a weak blur moves no byte


def test_no_flip_where_the_source_has_none() -> None:
    images = np.zeros((200, 32, 32, 3), np.uint8)
    images[:, :, 24:] = 255
    whole = uniform(200)
    whole[:, 0] = 1
    seen = simclr_view(images, whole, False, AugmentSettings(strong="simclr", jitter=0, blur=0))
    assert (seen[:, :, 0] == 0).all()


def test_the_blur_is_a_gaussian_over_a_tenth_of_the_side() -> None:
    point = np.zeros((40, 40, 1), np.uint8)
    point[20, 20] = 255
    tap = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 1.5**2))  # a width of 4, made odd
    expected = 255 * np.outer(tap, tap) / tap.sum() ** 2
    assert np.abs(blurred(point, 1.5)[18:23, 18:23, 0] - expected).max() < 1
    assert (blurred(point, 1.5) > 0).sum() == 25
    assert np.array_equal(blurred(point[:8, :8], 2.0), point[:8, :8])


def test_grey_has_no_colour_and_the_same_brightness() -> None:
    image = photographs(1)[0]
    seen = grey(image)
    assert np.ptp(seen.astype(int), axis=2).max() == 0
    assert seen[..., 0] == pytest.approx(image @ [0.299, 0.587, 0.114], abs=1)


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (32, 1), (8, 1), (1, 1), (96, 3)])
def test_the_view_is_a_pure_function_of_its_draws_and_keeps_shape_and_type(size: int, channels: int) -> None:
    images, augmenter = photographs(12, size, channels), Augmenter(AugmentSettings(strong="simclr"), True)
    before = images.copy()
    whole = augmenter.view("strong", images, Draws(0, 12, 1, ("a",)))
    assert (whole.shape, whole.dtype) == (images.shape, np.uint8)
    assert np.array_equal(images, before)
    assert np.array_equal(augmenter.view("strong", images[5:9], Draws(5, 9, 1, ("a",))), whole[5:9])
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert np.array_equal(augmenter.view("strong", channels_first, Draws(0, 12, 1, ("a",))), whole)
