"""Defines the settings of data in a recipe: the source, the split, and the augmentation of images."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selftrain.ssl_tasks.settings.section import RecipePath, Section


class DigitsSource(Section):
    """scikit-learn's 1,797 handwritten digits, 8×8 grey pixels. They need no network and are the default."""

    name: Literal["digits"] = "digits"


MaxFile = Annotated[
    int,
    Field(ge=1, le=100_000, description="largest image file that is read, in MB", json_schema_extra={"key": False}),
]


class FolderSource(Section):
    """A folder with one subfolder of images per class; unlabelled images in `unlabeled/` or in a list of paths."""

    name: Literal["folder"]
    path: RecipePath = Field(json_schema_extra={"key": False}, description="the folder with the class folders")
    unlabeled: RecipePath | None = Field(
        None,
        description="folder of unlabelled images, or a text file with one path per line; default unlabeled/",
        json_schema_extra={"key": False},
    )
    validation: RecipePath | None = Field(
        None,
        description="folder with the validation images in class folders; default validation/ if it exists",
        json_schema_extra={"key": False},
    )
    test: RecipePath | None = Field(
        None,
        description="folder with the test images in class folders; default test/ if it exists",
        json_schema_extra={"key": False},
    )
    follow_links: bool = Field(
        False,
        description="follow links that lead outside the folders above; links inside them are always followed",
        json_schema_extra={"key": False},
    )
    max_file_mb: MaxFile = 256


class TableSource(Section):
    """A CSV or Parquet file with one row per image: a column with its path or bytes, and a column with its label."""

    name: Literal["table"]
    path: RecipePath = Field(json_schema_extra={"key": False}, description="the CSV or Parquet file")
    root: RecipePath | None = Field(
        None,
        description="folder from which relative paths start; default the table's folder",
        json_schema_extra={"key": False},
    )
    image: str = Field("image", description="column with the path or the bytes of an image file")
    label: str = Field("label", description="column with the label; empty, null or a negative number means unlabelled")
    id: str | None = Field(None, description="column with unique ids; default the image's path or row number")
    split: str | None = Field(
        None,
        description="column that says labeled, unlabeled, validation or test; rows with train or nothing "
        "are drawn at random",
    )
    test_path: RecipePath | None = Field(
        None, description="second table, whose rows are the test images", json_schema_extra={"key": False}
    )
    max_file_mb: MaxFile = 256


class TorchvisionSource(Section):
    """A data set of torchvision in the folder `path`, downloaded if it is not there."""

    name: Literal["cifar10", "cifar100", "svhn", "stl10", "mnist", "fashion_mnist"]
    path: RecipePath = Field(
        Path("data"), json_schema_extra={"key": False}, description="folder of the data set's files"
    )
    download: bool = Field(True, json_schema_extra={"key": False}, description="download the files if they are missing")


class SyntheticSource(Section):
    """Coloured shapes in noise, drawn from a seed: a data set of any size, for tests of scale."""

    name: Literal["synthetic"]
    size: int = Field(10_000, ge=10, description="number of images without the test images")
    test_size: int = Field(1_000, ge=1, description="number of test images")
    classes: int = Field(10, ge=2, le=1000, description="number of classes")
    image_size: int = Field(32, ge=4, description="side in pixels")
    noise: float = Field(0.3, ge=0, description="standard deviation of the noise, where white is 1")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the images, apart from the run's seed")


Source = Annotated[
    DigitsSource | FolderSource | TableSource | TorchvisionSource | SyntheticSource, Field(discriminator="name")
]


class SplitSettings(Section):
    """The split into labelled, unlabelled, validation and test images. It is drawn from the seed and the images' ids,
    so adding unlabelled images moves no other image. Adding a labelled image moves at most one image into or out of
    validation and test if these are shares, and more if they are numbers. To keep the same test images, name them in
    the source: with a `test/` folder, a second table (`test_path`) or a column (`split`). The same is true of
    validation."""

    labels_per_class: int | None = Field(
        None,
        ge=1,
        description="labelled images per class: the mean if stratified, the most frequent class's if long_tailed",
    )
    labeled_fraction: float | None = Field(
        None, gt=0, le=1, description="share of the training images that keep their label; instead of labels_per_class"
    )
    validation: int | float = Field(0.1, ge=0, description="share (< 1) or number of the labelled images")
    test: int | float = Field(
        0.2,
        ge=0,
        description="share (< 1) or number of the labelled images; used only if the source has no test images",
    )
    strategy: Literal["balanced", "stratified", "long_tailed"] = Field(
        "balanced",
        description="balanced: equally many labelled images per class; stratified: in the classes' proportions; "
        "long_tailed: falling from class to class by `imbalance`",
    )
    imbalance: float = Field(1.0, ge=1, description="γ of long_tailed: size of the most frequent class ÷ the rarest")
    unlabeled_includes_labeled: bool = Field(
        True, description="labelled images are also among the unlabelled ones, as in the papers"
    )
    label_noise: float = Field(
        0.0, ge=0, lt=1, description="probability that a labelled image gets a wrong label; for experiments"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the split")

    @model_validator(mode="after")
    def _one_budget(self) -> "SplitSettings":
        if self.labels_per_class is not None and self.labeled_fraction is not None:
            raise ValueError("found both labels_per_class and labeled_fraction; expected one of them")
        for name in ("validation", "test"):
            if (value := getattr(self, name)) >= 1 and value != int(value):
                raise ValueError(f"{name} is {value}; expected a share below 1 or a whole number of images")
        return self


class DataSettings(Section):
    """The source of the images, their split, and how every image is prepared."""

    source: Source = DigitsSource()
    split: SplitSettings = SplitSettings()
    classes: tuple[str, ...] | None = Field(None, description="class names in order; default the labels found, sorted")
    image_size: int | None = Field(
        None,
        ge=1,
        description="side in pixels: images are resized by their shorter side and centre-cropped; default the "
        "labelled images' median shorter side, at most 224",
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 grey, 3 RGB; default 1 if all labelled images are grey, else 3"
    )
    standardise: bool = Field(
        True, description="subtract the mean of the pixels and divide by their deviation; false: scale to 0 … 1"
    )
    max_unreadable: float = Field(
        0.01, ge=0, le=1, description="largest share of unreadable images; a run with more fails"
    )
    max_pixels: int = Field(
        100_000_000, ge=1, description="largest image in pixels (width × height); larger ones count as unreadable"
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
    """The weak and strong augmentations. The operations of each strong augmentation, and their ranges, are listed in
    [augmentation.md](augmentation.md)."""

    flip: bool | Literal["auto"] = Field(
        "auto", description="random horizontal flips; auto: by the source, none for digits and house numbers"
    )
    crop_padding: float = Field(
        0.125,
        ge=0,
        lt=1,
        description="padding of the random crop, as a share of the image's side; the border is reflected",
    )
    strong: Strong = Field(
        "randaugment", description="the strong augmentation, by the paper whose official code it follows"
    )
    operations: int = Field(2, ge=0, description="N: number of operations drawn for an image; the depth of CTAugment")
    magnitude: Annotated[float, Field(ge=0, le=30)] | Literal["random"] = Field(
        "random",
        description="M: strength of every operation, usually 0 to 10; more is stronger than the usual range. random: "
        "drawn for each operation, a whole number from 1 to 9, or for randaugment within the ranges of "
        "FixMatch's paper",
    )
    probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability of applying a drawn operation; default as in the official code: 0.5 for fixmatch and "
        "uda, drawn from 0.2 to 0.8 for each image for meta_pseudo_labels, else 1",
    )
    cutout: float = Field(
        0.5,
        ge=0,
        le=1,
        description="side of the square cut out at the end, as a share of the image's side; 0: no cutout",
    )
    cutout_side: Literal["fixed", "random"] | None = Field(
        None,
        description="random: any side up to `cutout`; default random for randaugment with random magnitude, else fixed",
    )
    crop_scale: float = Field(
        0.08, gt=0, le=1, description="only simclr: smallest area of a crop, as a share of the image"
    )
    jitter: float = Field(1.0, ge=0, le=2, description="only simclr: strength of the colour jitter; 0.5 for CIFAR-10")
    blur: float = Field(0.5, ge=0, le=1, description="only simclr: probability of a blur; 0 for 32×32 pixels")

    @property
    def printed_ranges(self) -> bool:
        """Returns whether arguments are drawn from the ranges in FixMatch's paper, as in TorchSSL and USB."""
        return self.strong == "randaugment" and self.magnitude == "random"

    @property
    def random_cutout(self) -> bool:
        """Returns whether the side of the cutout square is random."""
        return self.printed_ranges if self.cutout_side is None else self.cutout_side == "random"

    @model_validator(mode="after")
    def _settings_of_this_view(self) -> "AugmentSettings":
        used = STRONG_SETTINGS[self.strong]
        for name in {name for names in STRONG_SETTINGS.values() for name in names} - set(used):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ValueError(f"{name} is {value}, but strong: {self.strong} has no such setting; remove it")
        return self
