"""Each view changes an image as specified, and never more."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from selftrain.ssl_tasks.data.batch import View
from selftrain.ssl_tasks.data.views.augmentation import OPERATIONS, cutout_boxes
from selftrain.ssl_tasks.data.views.randaugment import choose, randaugment_draws, randaugment_view
from selftrain.ssl_tasks.data.views.view import Augmenter, Draws, weak_view
from selftrain.ssl_tasks.settings.data import AugmentSettings

Bytes = NDArray[np.uint8]
SHAPES = [(8, 1), (8, 3), (32, 1), (32, 3), (2, 3), (1, 1)]
VIEWS: list[View] = ["none", "weak", "strong"]


def photographs(count: int = 12, size: int = 32, channels: int = 3) -> Bytes:
    """Smooth gradients with noise, so that every operation has something to change."""
    generator = np.random.default_rng(size + channels)
    ramp = np.linspace(40, 200, size)
    images = ramp[None, :, None, None] * 0.5 + ramp[None, None, :, None] * 0.5 + np.zeros((count, 1, 1, channels))
    return (images + generator.normal(0, 8, images.shape)).clip(0, 255).astype(np.uint8)


def draws_of(count: int, *names: object) -> Draws:
    return Draws(0, count, 11, names)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_views_keep_shape_and_type_and_leave_their_input_alone(view: View, size: int, channels: int) -> None:
    images = photographs(12, size, channels)
    before = images.copy()
    for step in range(15):
        seen = Augmenter(AugmentSettings(), True).view(view, images, draws_of(12, step))
        assert seen.shape == images.shape
        assert seen.dtype == np.uint8
    assert np.array_equal(images, before)


@pytest.mark.parametrize("view", VIEWS)
def test_the_memory_order_of_the_images_does_not_matter(view: View) -> None:
    images, augmenter = photographs(), Augmenter(AugmentSettings(), True)
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    seen = augmenter.view(view, channels_first, draws_of(12))
    assert np.array_equal(seen, augmenter.view(view, images, draws_of(12)))


@pytest.mark.parametrize("view", VIEWS)
def test_a_slice_of_a_batch_is_drawn_as_in_the_whole(view: View) -> None:
    images, augmenter = photographs(), Augmenter(AugmentSettings(), True)
    whole = augmenter.view(view, images, Draws(0, 12, 1, ("a",)))
    assert np.array_equal(augmenter.view(view, images[5:9], Draws(5, 9, 1, ("a",))), whole[5:9])


@pytest.mark.parametrize(
    ("setting", "source", "flips"), [("auto", True, 1), ("auto", False, 0), (True, False, 1), (False, True, 0)]
)
def test_images_are_flipped_only_where_that_is_right(setting: bool, source: bool, flips: bool) -> None:
    images = photographs(200, 8)
    seen = Augmenter(AugmentSettings(flip=setting, crop_padding=0), source).view("weak", images, draws_of(200))
    flipped = (seen == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((seen == images).all(axis=(1, 2, 3)) | flipped).all()
    assert flipped.any() == flips
    assert not flips or 70 < flipped.sum() < 130


def test_a_weak_view_is_a_crop_of_the_image_padded_by_reflection() -> None:
    images = photographs(60, 16)
    seen = weak_view(images, draws_of(60).uniform(3, "weak"), False, 0.125)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    places = set()
    for image, source in zip(seen, padded, strict=True):
        at = [(y, x) for y in range(5) for x in range(5) if np.array_equal(source[y : y + 16, x : x + 16], image)]
        places.update(at)
        assert at
    assert len(places) > 15  # of 25


CHANGING = sorted(set(OPERATIONS) - {"identity"})


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (32, 1), (8, 1)])
def test_operations_change_images_at_full_magnitude(name: str, size: int, channels: int) -> None:
    image = photographs(1, size, channels)[0]
    operation = OPERATIONS[name]
    changed = operation.apply(image, operation.low)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(changed, image) == (name == "color" and channels == 1)  # grey has no colour to lose


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_operations_keep_images_at_their_neutral_argument(name: str) -> None:
    image = photographs(1)[0]
    operation = OPERATIONS[name]
    assert np.abs(operation.apply(image, operation.neutral).astype(int) - image).max() <= 1


def test_operations_mean_what_their_names_say() -> None:
    image = photographs(1)[0]

    def apply(name: str, argument: float = 0) -> Bytes:
        return OPERATIONS[name].apply(image, argument)

    assert apply("brightness", 0.5).mean() == pytest.approx(image.mean() / 2, abs=1)
    assert apply("contrast", 0.05).std() < image.std() / 10
    assert np.ptp(apply("color", 0.05).astype(int), axis=2).mean() < np.ptp(image.astype(int), axis=2).mean() / 5
    assert (apply("autocontrast").min(), apply("autocontrast").max()) == (0, 255)
    assert len(np.unique(apply("posterize", 4))) <= 16
    assert np.array_equal(apply("solarize", 0.5), np.where(image >= 128, 255 - image, image))
    assert np.array_equal(apply("solarize", 0), 255 - image)
    assert (
        np.abs(np.diff(apply("sharpness", 0.05).astype(int), axis=0)).mean()
        < np.abs(np.diff(image.astype(int), axis=0)).mean()
    )
    assert np.abs(apply("rotate", 90).astype(int) - np.rot90(image)).max() == 0
    assert np.array_equal(apply("translate_x", 0.25)[:, :24], image[:, 8:])
    assert np.array_equal(apply("translate_y", -0.25)[8:], image[:24])
    assert np.array_equal(apply("shear_x", 0.3)[15:17, 2:-2], image[15:17, 2:-2])  # the middle rows stay
    assert (apply("translate_x", 0.25)[:, 24:] == 0).all()


def test_random_magnitudes_fill_fixmatchs_ranges() -> None:
    draw = np.linspace(0, 0.999, 50)
    for number, operation in enumerate(OPERATIONS.values()):
        which = np.full(50, (number + 0.5) / len(OPERATIONS))
        values = choose(np.stack([which, draw], axis=1), 32, AugmentSettings(operations=1)).arguments
        assert values.min() == operation.low
        assert values.max() == pytest.approx(operation.high, abs=0.01 * (operation.high - operation.low) + 1e-12)


@pytest.mark.parametrize("magnitude", [-1, 31, "strong"])
def test_magnitudes_out_of_range_are_refused(magnitude: float | str) -> None:
    with pytest.raises(ValidationError):
        AugmentSettings(magnitude=magnitude)


def test_no_operations_and_no_cutout_leave_the_weak_view() -> None:
    settings = AugmentSettings(operations=0, cutout=0)
    images = photographs()
    assert np.array_equal(
        randaugment_view(images, draws_of(12).uniform(randaugment_draws(settings), "s"), settings), images
    )


def test_the_cut_square_is_grey_and_no_larger_than_asked() -> None:
    boxes = cutout_boxes(draws_of(500).uniform(3, "cut"), 32, 0.5)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.max() == 16
    assert sides.min() == 0
    assert boxes.min() == 0
    assert boxes.max() == 32
    settings = AugmentSettings(operations=0, cutout=1)
    cut = randaugment_view(np.zeros((50, 32, 32, 3), np.uint8), draws_of(50).uniform(3, "s"), settings)
    assert set(np.unique(cut)) == {0, 127}


def test_every_operation_is_drawn_alike() -> None:
    draws = draws_of(14_000).uniform(2, "operations")
    counts = np.bincount(choose(draws, 32, AugmentSettings(operations=1)).operations[:, 0], minlength=14)
    assert ((counts - 1000) ** 2 / 1000).sum() < 34.5  # χ² with 13 degrees of freedom, p = .001
