"""The strong views of the official codes, against their formulas written again here and against PIL's pictures."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError

from selftrain.ssl_tasks.data.views.randaugment import (
    CHANGES,
    OFFICIAL,
    argument_table,
    choose,
    randaugment_draws,
    randaugment_view,
)
from selftrain.ssl_tasks.settings.data import AugmentSettings
from tests.data.test_augmentation import draws_of, photographs

ENHANCED = ("brightness", "color", "contrast", "sharpness")
SHIFTED = ("translate_x", "translate_y")
MOVED = ("rotate", "shear_x", "shear_y", *SHIFTED)

# Arguments in the official codes' own units, of a level of 10 on 32×32 pixels.
Formula = Callable[[float], float]
PIL_FORMULAS: dict[str, Formula] = {  # fixmatch and uda: third_party/auto_augment and image/randaugment
    **dict.fromkeys(("identity", "autocontrast", "equalize", "invert"), lambda level: 0),
    **dict.fromkeys(ENHANCED, lambda level: 0.1 + 1.8 * (level / 10)),
    "rotate": lambda level: np.trunc(3 * level),
    **dict.fromkeys(("shear_x", "shear_y"), lambda level: 0.3 * (level / 10)),
    **dict.fromkeys(SHIFTED, np.trunc),
    "posterize": lambda level: 4 - level * 4 // 10,
    "solarize": lambda level: 256 - level * 256 // 10,
    "cutout": lambda level: 2 * (level * 2 // 2),
}
TENSORFLOW_FORMULAS: dict[str, Formula] = {  # noisystudent and meta_pseudo_labels: _MAX_LEVEL = 10
    **PIL_FORMULAS,
    "rotate": lambda level: 30 * (level / 10),
    **dict.fromkeys(SHIFTED, lambda level: 32 // 8 * (level / 10)),
    "posterize": lambda level: np.floor(level / 10 * 4),
    "solarize": lambda level: np.floor(level / 10 * 256),
    "solarize_add": lambda level: np.floor(level / 10 * 110),
    "cutout": lambda level: 2 * np.floor(level / 10 * (32 // 8)),
}
FORMULAS = {
    "fixmatch": PIL_FORMULAS,
    "uda": PIL_FORMULAS,
    "randaugment": TENSORFLOW_FORMULAS,
    "meta_pseudo_labels": TENSORFLOW_FORMULAS,
}
LEVELS_OF = {"fixmatch": range(1, 10), "uda": range(1, 10), "randaugment": range(31), "meta_pseudo_labels": range(31)}
UNITS = {"solarize": 256, "cutout": 2, **dict.fromkeys(SHIFTED, 32)}
FOURTEEN = {"identity", "autocontrast", "equalize", "posterize", "solarize", *ENHANCED, *MOVED}
OPERATIONS_OF = {
    "fixmatch": FOURTEEN,
    "uda": FOURTEEN - {"identity"} | {"invert", "cutout"},
    "meta_pseudo_labels": FOURTEEN - {"identity"} | {"invert", "cutout"},
    "randaugment": FOURTEEN - {"identity"} | {"invert", "cutout", "solarize_add"},
}


def argument(strong: str, name: str, level: float, side: int = 32) -> float:
    """Returns the argument of an operation in the official code's unit."""
    row = list(OFFICIAL[strong].curves).index(name)
    return float(argument_table(strong, (float(level),), side)[row, 0]) * UNITS.get(name, 1)


def saturated(name: str, value: float) -> float:
    """Clips values where the official code overflows a byte."""
    return {"posterize": np.clip(value, 1, 8), "solarize": min(value, 256)}.get(name, value)


@pytest.mark.parametrize("strong", FORMULAS)
def test_every_operation_has_the_official_codes_argument_at_every_level(strong: str) -> None:
    assert set(OFFICIAL[strong].curves) == OPERATIONS_OF[strong]
    for name in OFFICIAL[strong].curves:
        for level in LEVELS_OF[strong]:
            expected = saturated(name, float(FORMULAS[strong][name](level)))
            assert argument(strong, name, level) == pytest.approx(expected), (name, level)


def test_a_magnitude_of_16_goes_beyond_the_usual_ranges() -> None:
    found = {name: argument("randaugment", name, 16) for name in ("rotate", "shear_x", "color", "translate_x")}
    assert found == pytest.approx({"rotate": 48, "shear_x": 0.48, "color": 2.98, "translate_x": 6.4})
    assert argument("randaugment", "translate_x", 10, side=224) / 32 * 224 == pytest.approx(100)  # ImageNet's branch
    assert argument("randaugment", "cutout", 10, side=224) == 80


def official_picture(name: str, value: float, image: Image.Image) -> Image.Image:
    """Returns PIL's result, called as in the official code; a movement uncovers grey."""
    match name:
        case "identity":
            return image
        case "posterize":
            return ImageOps.posterize(image, int(value))
        case "solarize":
            return ImageOps.solarize(image, value)
        case "rotate":
            return image.rotate(value, fillcolor=(127, 127, 127))
        case "autocontrast" | "equalize" | "invert":
            return getattr(ImageOps, name)(image)
        case "brightness" | "color" | "contrast" | "sharpness":
            return getattr(ImageEnhance, name.title())(image).enhance(value)
    matrices = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value),
    }
    return image.transform(image.size, Image.Transform.AFFINE, matrices[name], fillcolor=(127, 127, 127))


@pytest.mark.parametrize("name", sorted({*FOURTEEN, "invert"}))
def test_operations_make_the_pictures_that_pil_makes(name: str) -> None:
    image, strong = photographs(1)[0], "uda" if name == "invert" else "fixmatch"
    row = list(OFFICIAL[strong].curves).index(name)
    inner = slice(1, -1) if name == "sharpness" else slice(None)  # PIL does not smooth the border
    for level in range(1, 10):
        for sign in {1, -1 if name in MOVED else 1}:
            value = sign * float(argument_table(strong, (float(level),), 32)[row, 0])
            expected = official_picture(name, sign * float(PIL_FORMULAS[name](level)), Image.fromarray(image))
            difference = np.abs(CHANGES[name](image, value, [0, 0]).astype(int) - np.asarray(expected))[inner, inner]
            differ = difference.max(axis=2) > (4 if name == "equalize" else 1)  # OpenCV's rounding of values …
            assert differ.mean() <= (0.02 if name in MOVED else 0), (level, sign)  # … and of places halfway


def test_solarize_add_lightens_the_dark_half() -> None:
    image = photographs(1)[0]
    expected = np.where(image < 128, np.minimum(image.astype(int) + 176, 255), image)
    assert np.array_equal(CHANGES["solarize_add"](image, 176, [0, 0]), expected)


def test_solarize_beyond_level_10_leaves_even_white_pixels() -> None:
    image = np.full((4, 4, 3), 255, np.uint8)
    assert np.array_equal(CHANGES["solarize"](image, argument("randaugment", "solarize", 16) / 256, [0, 0]), image)


def fraction_of_uncut(settings: AugmentSettings, count: int = 2000) -> NDArray[np.float64]:
    """The share of each black image that the view leaves black."""
    images = np.zeros((count, 32, 32, 1), np.uint8)
    seen = randaugment_view(images, draws_of(count).uniform(randaugment_draws(settings), "s"), settings)
    return (seen == 0).mean(axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("settings", "area"),
    [
        ({"strong": "fixmatch"}, 196),  # the mean over the centres of (their 16 pixels, less what lies outside)²
        ({"strong": "uda"}, 196),
        ({"strong": "meta_pseudo_labels", "magnitude": 16}, 196),
        ({"magnitude": 5}, 196),
        ({"cutout_side": "fixed"}, 196),
        ({}, 72),
        ({"strong": "fixmatch", "cutout_side": "random"}, 72),
        ({"strong": "fixmatch", "cutout": 0}, 0),
    ],
)
def test_the_official_codes_cut_out_a_fixed_square(settings: dict, area: float) -> None:
    cut = 1024 * (1 - fraction_of_uncut(AugmentSettings(operations=0, **settings)).mean())
    assert cut == pytest.approx(area, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"strong": "fixmatch"}, 0.5),
        ({"strong": "uda"}, 0.5),
        ({"strong": "meta_pseudo_labels", "magnitude": 16}, 0.5),
        ({"magnitude": 5}, 1),
        ({}, 1),
        ({"probability": 0.3}, 0.3),
        ({"strong": "fixmatch", "probability": 1}, 1),
        ({"magnitude": 5, "probability": 0}, 0),
    ],
)
def test_operations_are_applied_with_the_official_probability(settings: dict, share: float) -> None:
    chosen = AugmentSettings(**settings)
    uniform = draws_of(20_000).uniform(randaugment_draws(chosen), "s")[:, :-3]
    choice = choose(uniform, 32, chosen)
    idle = [number for number, change in enumerate(choice.table) if change is CHANGES["identity"]]
    drawn = 1 / 14 if idle[0] == 0 else 0  # where identity is an operation like the others
    assert np.isin(choice.operations, idle).mean() == pytest.approx(1 - share * (1 - drawn), abs=0.01)


def test_meta_pseudo_labels_draws_one_probability_for_an_image() -> None:
    settings = AugmentSettings(strong="meta_pseudo_labels", magnitude=16)
    choice = choose(draws_of(50_000).uniform(randaugment_draws(settings), "s")[:, :-3], 32, settings)
    first, second = (choice.operations < 15).T
    expected = 0.6**2 / 12  # the variance of a probability between .2 and .8, which both operations share
    assert np.cov(first, second)[0, 1] == pytest.approx(expected, abs=0.005)


def test_fixmatch_draws_whole_levels_from_1_to_9_alike_and_either_sign() -> None:
    settings = AugmentSettings(strong="fixmatch", probability=1)
    choice = choose(draws_of(20_000).uniform(randaugment_draws(settings), "s")[:, :-3], 32, settings)
    turns = choice.arguments[choice.operations == list(OFFICIAL["fixmatch"].curves).index("rotate")]
    values, counts = np.unique(turns, return_counts=True)
    assert values.tolist() == [3 * level for level in range(-9, 10) if level]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 40.8  # χ² with 17 degrees of freedom, p = .001


@pytest.mark.parametrize("strong", ["fixmatch", "uda", "meta_pseudo_labels", "randaugment"])
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1), (96, 3), (1, 1)])
def test_official_views_keep_shape_and_type(strong: str, size: int, channels: int) -> None:
    settings = AugmentSettings(strong=strong, magnitude=27 if strong in ("randaugment",) else "random")
    images = photographs(40, size, channels)
    seen = randaugment_view(images, draws_of(40).uniform(randaugment_draws(settings), "s"), settings)
    assert (seen.shape, seen.dtype) == (images.shape, np.uint8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strong": "ctaugment", "magnitude": 16}, "magnitude is 16.0, but strong: ctaugment has no such setting"),
        ({"strong": "simclr", "operations": 3}, "operations is 3, but strong: simclr has no such setting"),
        ({"jitter": 0.5}, "jitter is 0.5, but strong: randaugment has no such setting"),
    ],
)
def test_a_setting_that_the_view_does_not_have_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentSettings(**settings)
