"""What a recipe may say of data: the source, the split, and how images are augmented."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selftrain.ssl_tasks.settings.section import RecipePath, Section


class DigitsSource(Section):
    """scikit-learn's 1,797 handwritten digits, 8×8 grey: real, offline, the built-in default."""

    name: Literal["digits"] = "digits"


MaxFile = Annotated[
    int,
    Field(ge=1, le=100_000, description="a larger image file is not read, in MB", json_schema_extra={"key": False}),
]


class FolderSource(Section):
    """Class folders of images; unlabelled ones in `unlabeled/` or in a list of paths."""

    name: Literal["folder"]
    path: RecipePath = Field(json_schema_extra={"key": False})
    unlabeled: RecipePath | None = Field(
        None,
        description="a folder, or a text file with one path a line; default unlabeled/",
        json_schema_extra={"key": False},
    )
    validation: RecipePath | None = Field(
        None,
        description="class folders of the validation set; default validation/ if there is one",
        json_schema_extra={"key": False},
    )
    test: RecipePath | None = Field(
        None,
        description="class folders of the test set; default test/ if there is one",
        json_schema_extra={"key": False},
    )
    follow_links: bool = Field(
        False,
        description="follow links to folders outside the folders above; links within them are always followed",
        json_schema_extra={"key": False},
    )
    max_file_mb: MaxFile = 256


class TableSource(Section):
    """A CSV or Parquet file: a path or an image-bytes column, a label column that may be empty."""

    name: Literal["table"]
    path: RecipePath = Field(json_schema_extra={"key": False})
    root: RecipePath | None = Field(
        None,
        description="what relative paths start from; default the table's folder",
        json_schema_extra={"key": False},
    )
    image: str = Field("image", description="the column with a path or with the bytes of an image file")
    label: str = Field("label", description="empty, null or a negative number: no label")
    id: str | None = Field(None, description="the column with unique ids; default the image path or row number")
    split: str | None = Field(
        None, description="a column with labeled, unlabeled, validation, test, or train (and empty): to be drawn"
    )
    test_path: RecipePath | None = Field(
        None, description="a second table whose rows are the test set", json_schema_extra={"key": False}
    )
    max_file_mb: MaxFile = 256


class TorchvisionSource(Section):
    """A data set that torchvision knows, in `path`, downloaded where there is a network."""

    name: Literal["cifar10", "cifar100", "svhn", "stl10", "mnist", "fashion_mnist"]
    path: RecipePath = Field(Path("data"), json_schema_extra={"key": False})
    download: bool = Field(True, json_schema_extra={"key": False})


class SyntheticSource(Section):
    """Coloured shapes in noise, drawn on the fly from their number: any size, for tests of scale."""

    name: Literal["synthetic"]
    size: int = Field(10_000, ge=10)
    test_size: int = Field(1_000, ge=1)
    classes: int = Field(10, ge=2, le=1000)
    image_size: int = Field(32, ge=4)
    noise: float = Field(0.3, ge=0, description="standard deviation, on a scale where white is 1")
    seed: int = Field(0, ge=0, lt=2**63)


Source = Annotated[
    DigitsSource | FolderSource | TableSource | TorchvisionSource | SyntheticSource, Field(discriminator="name")
]


class SplitSettings(Section):
    """Who is labelled. Drawn from the seed by a keyed order of the ids, so that added unlabelled images move no other.
    Each added label moves up to one image across each border of validation and test where these are shares, more where
    they are numbers. To keep the same test images, let the source name them: a `test/` folder, a second table
    (`test_path`) or a column (`split`); the same holds for validation."""

    labels_per_class: int | None = Field(
        None, ge=1, description="at the mean where stratified, the head's where long_tailed"
    )
    labeled_fraction: float | None = Field(None, gt=0, le=1)
    validation: int | float = Field(0.1, ge=0, description="share (< 1) or number of the images with a label")
    test: int | float = Field(0.2, ge=0, description="share or number; only where the source brings no test set")
    strategy: Literal["balanced", "stratified", "long_tailed"] = "balanced"
    imbalance: float = Field(1.0, ge=1, description="γ of long_tailed: most frequent class ÷ rarest")
    unlabeled_includes_labeled: bool = True
    label_noise: float = Field(0.0, ge=0, lt=1, description="chance that a labelled image gets another class: to test")
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _one_budget(self) -> "SplitSettings":
        if self.labels_per_class is not None and self.labeled_fraction is not None:
            raise ValueError("labels_per_class and labeled_fraction exclude each other; set one of them")
        for name in ("validation", "test"):
            if (value := getattr(self, name)) >= 1 and value != int(value):
                raise ValueError(f"{name} is {value}; expected a share below 1 or a whole number of images")
        return self


class DataSettings(Section):
    """A source, its split, and what is done to every image before anything else."""

    source: Source = DigitsSource()
    split: SplitSettings = SplitSettings()
    classes: tuple[str, ...] | None = Field(None, description="the class list; default what the labels say, sorted")
    image_size: int | None = Field(
        None,
        ge=1,
        description="images are resized (shorter side) and centre-cropped to it; default the labelled images' median "
        "shorter side, 224 at the most",
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", json_schema_extra={"key": "changed"}, description="of the resizing; pretrained weights state theirs"
    )
    crop: float = Field(
        1.0,
        gt=0,
        le=1,
        json_schema_extra={"key": "changed"},
        description="share of the shorter side that the centre crop keeps; pretrained weights state theirs",
    )
    channels: Literal[1, 3] | None = Field(None, description="default 1 where the labelled images are grey, else 3")
    standardise: bool = Field(True, description="pixels less their mean, over their deviation; false: in 0 … 1")
    max_unreadable: float = Field(0.01, ge=0, le=1, description="share of unreadable images above which a run fails")
    max_pixels: int = Field(100_000_000, ge=1, description="larger images are refused unread")


Strong = Literal["randaugment", "fixmatch", "uda", "meta_pseudo_labels", "ctaugment", "simclr"]
DRAWN_ALIKE = ("operations", "magnitude", "probability", "cutout", "cutout_side")
STRONG_SETTINGS: dict[Strong, tuple[str, ...]] = {
    "randaugment": DRAWN_ALIKE,
    "fixmatch": DRAWN_ALIKE,
    "uda": DRAWN_ALIKE,
    "meta_pseudo_labels": DRAWN_ALIKE,
    "ctaugment": ("operations", "cutout", "cutout_side"),
    "simclr": ("crop_scale", "jitter", "blur"),
}


class AugmentSettings(Section):
    """What `weak` and `strong` mean. `auto` asks the source: no flips for digits and house numbers. Which operations a
    strong view has, and their ranges: [augmentation.md](augmentation.md)."""

    flip: bool | Literal["auto"] = "auto"
    crop_padding: float = Field(0.125, ge=0, lt=1, description="of the image's side, reflected")
    strong: Strong = Field("randaugment", description="the strong view of which paper's official code")
    operations: int = Field(2, ge=0, description="N: how many are drawn for an image; depth of CTAugment")
    magnitude: Annotated[float, Field(ge=0, le=30)] | Literal["random"] = Field(
        "random",
        description="M: the level, of 10, of every operation; above 10 is stronger than the usual range. random: a "
        "whole level from 1 to 9 for each operation, in randaugment anywhere in the ranges of FixMatch's paper",
    )
    probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of applying a drawn operation; default the official code's: 0.5 in fixmatch and uda, drawn from "
        "0.2 to 0.8 for each image in meta_pseudo_labels, else 1",
    )
    cutout: float = Field(
        0.5, ge=0, le=1, description="side of the square that is cut out at the end, as a share of the image's; 0: none"
    )
    cutout_side: Literal["fixed", "random"] | None = Field(
        None,
        description="random: any side up to `cutout`; default random in randaugment with random magnitudes, else fixed",
    )
    crop_scale: float = Field(0.08, gt=0, le=1, description="of simclr: smallest area of a crop, as a share")
    jitter: float = Field(1.0, ge=0, le=2, description="of simclr: strength of the colour jitter; 0.5 for CIFAR-10")
    blur: float = Field(0.5, ge=0, le=1, description="of simclr: probability of a blur; 0 for images of 32×32")

    @property
    def printed_ranges(self) -> bool:
        """Whether arguments are drawn from the ranges that FixMatch's paper prints, as TorchSSL and USB do."""
        return self.strong == "randaugment" and self.magnitude == "random"

    @property
    def random_cutout(self) -> bool:
        """Whether the square's side is drawn."""
        return self.printed_ranges if self.cutout_side is None else self.cutout_side == "random"

    @model_validator(mode="after")
    def _settings_of_this_view(self) -> "AugmentSettings":
        used = STRONG_SETTINGS[self.strong]
        for name in {name for names in STRONG_SETTINGS.values() for name in names} - set(used):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ValueError(f"{name} is {value}, and strong: {self.strong} has no such setting; leave it out")
        return self
