"""Defines the settings of a network and of its first weights, and checks files of weights. Imports no torch."""

import json
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from selftrain.ssl_tasks.errors import ConfigError

ONE_SIZE = (
    "mlp",
    "torchvision:vit",
    "torchvision:maxvit",
    "timm:vit",
)  # beginnings of the names of networks that are built for one image size
LIBRARIES = ("timm:", "torchvision:")
SUFFIX = ".safetensors"
HUB_ID = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
MOST_HEADER = 100_000_000  # bytes that name a safetensors file's tensors, as its reader allows
FOREIGN = {b"PK\x03\x04": "torch.save", b"\x80\x02": "pickle", b"\x80\x03": "pickle", b"\x80\x04": "pickle"}


class Normalisation(BaseModel):
    """The mean and standard deviation of each channel that normalise images, on a scale where white is 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: tuple[float, ...] = Field(description="mean of each channel, 0 … 1")
    std: tuple[float, ...] = Field(description="standard deviation of each channel, 0 … 1")

    @model_validator(mode="after")
    def _channels_alike(self) -> Self:
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ValueError(
                f"preprocess has mean {list(self.mean)} and std {list(self.std)}; expected one of each for every "
                "channel, and deviations above 0"
            )
        return self


class ModelSettings(BaseModel):
    """A network by its registered name, its noise, and where its first weights come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str = Field(
        "small_cnn",
        description="the network: wrn-D-K, small_cnn, fast_cnn, mlp, mlp-D, torchvision:<name> or timm:<name>",
    )
    width: int | None = Field(
        None, ge=1, description="channels of the first stage (small_cnn, fast_cnn) or hidden units (mlp)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="probability of dropout before the classifier")
    stochastic_depth: float = Field(
        0.0, ge=0, lt=1, description="drop rate of the last block; earlier blocks have less"
    )
    batch_norm_momentum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="momentum of batch norm's running statistics; default 0.001 for wrn, as in the "
        "reference (raise it for "
        "short runs), else 0.1",
    )
    pretrained: bool | str | None = Field(
        None,
        json_schema_extra={"key": False},
        description="first weights: true (timm's or torchvision's own), a tag of theirs, a hub id (timm/NAME.TAG, "
        "hf-hub:ORG/NAME, each with @REVISION), an https URL or a path of a .safetensors file",
    )
    preprocess: Literal["backbone", "data"] | Normalisation = Field(
        "backbone",
        json_schema_extra={"key": "changed"},
        description="which mean and std normalise the images: those that the pretrained weights were trained with, "
        "those of the labelled images (also without pretrained weights), or {mean: […], std: […]}",
    )

    @field_validator("pretrained", mode="before")
    @classmethod
    def _paths_start_from_the_recipe(cls, value: Any, info: ValidationInfo) -> Any:
        """Reads `false` as none, and a relative path from the recipe's folder, as for every path of a recipe."""
        text, folder = str(value), (info.context or {}).get("folder")
        if isinstance(value, bool) or not isinstance(value, (str, Path)):
            return value or None
        return str(folder / text) if folder and text and not text.startswith("~") and looks_like_path(text) else text

    @model_validator(mode="after")
    def _weights_can_be_named(self) -> Self:
        if isinstance(self.pretrained, str):
            source_kind(self.pretrained)
        if (self.pretrained is True or self.pretrained_kind == "tag") and not self.name.startswith(LIBRARIES):
            raise ValueError(
                f"model.pretrained is {str(self.pretrained).lower()}, and there are no published weights of "
                f"{self.name}; give the path of a .safetensors file, or use a network named timm:… or torchvision:…"
            )
        return self

    @property
    def pretrained_kind(self) -> Literal["none", "tag", "hub", "url", "path"]:
        """Returns the kind of place that the first weights come from; `true` is a tag too, the library's default."""
        if self.pretrained is None:
            return "none"
        return "tag" if isinstance(self.pretrained, bool) else source_kind(self.pretrained)

    @property
    def label(self) -> str:
        """Returns the network's name in tables."""
        return self.name if self.width is None else f"{self.name} {self.width}"


def looks_like_path(text: str) -> bool:
    """Returns whether a text names a file of this machine, by its beginning or its suffix."""
    suffixes = (SUFFIX, ".pt", ".pth", ".bin", ".ckpt")
    return text.startswith(("/", "./", "../", "~")) or (text.endswith(suffixes) and "://" not in text)


def source_kind(text: str) -> Literal["tag", "hub", "url", "path"]:
    """Returns the kind of place that `model.pretrained` names; only the text decides, not the files on the disk."""
    if text.startswith("http://") and not re.match(r"http://(127\.0\.0\.1|localhost)[:/]", text):
        raise ValueError(
            f"model.pretrained is {text}; expected https://, so that the weights cannot be changed on the way"
        )
    if text.startswith(("https://", "http://")):
        if not text.partition("?")[0].endswith(SUFFIX):
            raise ValueError(f"model.pretrained is {text}; expected the URL of a {SUFFIX} file")
        return "url"
    if looks_like_path(text):
        return "path"
    if "/" not in text and ":" not in text:
        return "tag"
    if HUB_ID.fullmatch(text):
        return "hub"
    raise ValueError(
        f"model.pretrained is '{text}'; expected true, a tag, a hub id such as timm/resnet18.a1_in1k, an https URL, "
        f"or the path of a {SUFFIX} file"
    )


def weights_file(model: ModelSettings) -> Path | None:
    """Returns the file of this machine that a recipe names; None if it names another kind of place, or none."""
    return Path(str(model.pretrained)).expanduser() if model.pretrained_kind == "path" else None


def check_safetensors(path: Path, setting: str = "model.pretrained") -> None:
    """Raises ConfigError unless the file is a complete safetensors file; reads only its first bytes."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{setting}: {path} {found}; expected a {SUFFIX} file")
    remedy = "Save a state dict with safetensors.torch.save_file; files of torch.save and pickle are not read."
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if writer := next((name for first, name in FOREIGN.items() if start.startswith(first)), None):
            raise ConfigError(f"{setting}: {path} is not a safetensors file: {writer} wrote it. {remedy}")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MOST_HEADER, size):
            raise ConfigError(f"{setting}: {path} is not a safetensors file, or is cut off. {remedy}")
        try:
            entries = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{setting}: {path} is not a safetensors file. {remedy}") from error
    if (whole := 8 + length + max(ends, default=0)) != size:
        raise ConfigError(
            f"{setting}: {path} has {size:,} bytes and says that it has {whole:,}: it is cut off. Fetch it again."
        )


class LoraSettings(BaseModel):
    """Low-rank adaptation (LoRA, 2106.09685), which adds alpha ÷ rank · up(down(input)) to a frozen layer's output."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    rank: int = Field(8, ge=1, description="channels between down and up")
    alpha: float = Field(16.0, gt=0, description="strength; alpha ÷ rank is the factor")
    targets: tuple[str, ...] = Field(
        (), description="parts of the names of layers, such as qkv; default all linear and 1×1 convolutional layers"
    )
