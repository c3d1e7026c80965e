"""What a recipe may say of data: the source, the split, and how images are augmented."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ssl_tasks.section import Section


class DigitsSource(Section):
    """scikit-learn's 1,797 handwritten digits, 8×8 grey: real, offline, the built-in default."""

    name: Literal["digits"] = "digits"


class FolderSource(Section):
    """Class folders of images; unlabelled ones in `unlabeled/` or in a list of paths."""

    name: Literal["folder"]
    path: Path
    unlabeled: Path | None = Field(
        None, description="a folder, or a text file with one path a line; default unlabeled/"
    )
    test: Path | None = Field(None, description="class folders of the test set; default test/ if there is one")


class TableSource(Section):
    """A CSV or Parquet file: a path or an image-bytes column, a label column that may be empty."""

    name: Literal["table"]
    path: Path
    root: Path | None = Field(None, description="what relative paths start from; default the table's folder")
    image: str = Field("image", description="the column with a path or with the bytes of an image file")
    label: str = "label"
    id: str | None = Field(None, description="the column with unique ids; default the image path or row number")
    split: str | None = Field(None, description="a column with labeled, unlabeled, validation or test")
    test_path: Path | None = Field(None, description="a second table whose rows are the test set")


class TorchvisionSource(Section):
    """A data set that torchvision knows, in `path`, downloaded where there is a network."""

    name: Literal["cifar10", "cifar100", "svhn", "stl10", "mnist", "fashion_mnist"]
    path: Path = Path("data")
    download: bool = True


class SyntheticSource(Section):
    """Coloured shapes in noise, drawn on the fly from their number: any size, for tests of scale."""

    name: Literal["synthetic"]
    size: int = Field(10_000, ge=10)
    test_size: int = Field(1_000, ge=1)
    classes: int = Field(10, ge=2, le=1000)
    image_size: int = Field(32, ge=4)
    noise: float = Field(0.3, ge=0)
    seed: int = Field(0, ge=0)


Source = Annotated[
    DigitsSource | FolderSource | TableSource | TorchvisionSource | SyntheticSource, Field(discriminator="name")
]


class SplitSettings(Section):
    """Who is labelled. Drawn once from the seed by a keyed order of the ids, so that added images move no other."""

    labels_per_class: int | None = Field(None, ge=1)
    labeled_fraction: float | None = Field(None, gt=0, le=1)
    validation: float | int = Field(0.1, ge=0, description="share (< 1) or number of the images with a label")
    test: float | int = Field(0.2, ge=0, description="share or number; only where the source brings no test set")
    strategy: Literal["balanced", "stratified", "long_tailed"] = "balanced"
    imbalance: float = Field(1.0, ge=1, description="γ of long_tailed: most frequent class ÷ rarest")
    unlabeled_includes_labeled: bool = True
    seed: int = Field(0, ge=0, lt=2**63)


class DataSettings(Section):
    """A source, its split, and what is done to every image before anything else."""

    source: Source = DigitsSource()
    split: SplitSettings = SplitSettings()
    classes: tuple[str, ...] | None = Field(None, description="the class list; default what the labels say, sorted")
    image_size: int | None = Field(None, ge=1, description="images are resized (shorter side) and centre-cropped to it")
    channels: Literal[1, 3] | None = None
    max_unreadable: float = Field(0.01, ge=0, le=1, description="share of unreadable images above which a run fails")
    max_pixels: int = Field(100_000_000, ge=1, description="larger images are refused unread")


class AugmentSettings(Section):
    """What `weak` and `strong` mean. `auto` asks the source: no flips for digits and house numbers."""

    flip: bool | Literal["auto"] = "auto"
    crop_padding: float = Field(0.125, ge=0, lt=1, description="of the image's side, reflected")
    strong: Literal["randaugment", "ctaugment"] = "randaugment"
    operations: int = Field(2, ge=0, description="N of RandAugment")
    magnitude: float | Literal["random"] = Field(
        "random", description="M of RandAugment, 0 to 30; random as FixMatch's"
    )
    cutout: float = Field(0.5, ge=0, le=1, description="largest side of the cut square, as a share of the image's")
