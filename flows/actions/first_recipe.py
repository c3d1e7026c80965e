"""Writes the first recipe for a person's own images: one of three templates, chosen by the images and the machine."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import Request, urlopen

from selftrain.flows.actions.models import model_settings
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.recipe import BUILT_IN
from selftrain.ssl_tasks.settings.run_config import run_name
from selftrain.ssl_tasks.store.artifacts import write_atomically

if TYPE_CHECKING:
    from selftrain.models.sources import Source

__all__ = ["write_recipe"]

PHOTOGRAPH = 64  # pixels of the median shorter side from which images are taken for photographs
PATIENCE = 3.0  # seconds to find out whether weights can be fetched
NO_WEIGHTS = "none"
FEW = 20  # labels of a class, below which each is worth more in training than in validation


@dataclass(frozen=True)
class Template:
    """A recipe to fill in, the sides that its images may have, and the network whose weights it starts from."""

    file: Path
    sides: tuple[int, int]
    network: str = ""


SMALL = Template(BUILT_IN / "image_folder.yaml", (32, 96))  # networks from random weights are slow on larger images
PHOTOS = Template(BUILT_IN / "photos.yaml", (64, 112), "timm:tf_efficientnet_lite0")
PHOTOS_GPU = Template(BUILT_IN / "photos-gpu.yaml", (112, 224), "timm:vit_small_patch14_dinov2")


def write_recipe(data: Path, output: Path, follow_links: bool = False, weights: str | Path | None = None) -> list[str]:
    """Write a recipe that reads `data`, and return a description of the data, line by line. No file is overwritten.

    `weights` are the pretrained weights to start from: a path, a URL or a hub id, or "none". By default, photographs
    get those that timm publishes, if they are on this machine or can be fetched.
    """
    from selftrain.ssl_tasks.data.inspect_folder import suggest_settings

    if output.exists():
        raise ConfigError(f"{output} exists already. Name another file: selftrain init {data} --output FILE")
    found = suggest_settings(data, follow_links)
    median = found.sides[1] if found.sides else 0
    template, pretrained, notes = _choose(median, weights)
    source = {
        name: str(value.absolute()) if isinstance(value, Path) else value
        for name, value in found.settings.source.model_dump(exclude_defaults=True).items()
    }
    source = {"name": found.settings.source.name, **source}
    smallest, largest = template.sides
    size = min(max(smallest, median), largest)
    if template is PHOTOS_GPU:
        size -= size % 14  # the side of the network's patches
    name = json.dumps(run_name(data.absolute().stem, "images"))  # in quotes, because YAML reads 2024 as a number
    text = template.file.read_text()
    for setting, value in (
        ("name", name),
        ("  source", json.dumps(source, ensure_ascii=False)),
        ("  image_size", str(size)),
    ):
        line = re.search(rf"^{setting}: .*$", text, flags=re.MULTILINE)
        assert line is not None, f"the template has no {setting.strip()}"
        text = text.replace(line.group(), f"{setting}: {value}", 1)
    fewest = min(found.labels.values(), default=0)
    if template is not SMALL and fewest < FEW:
        text = text.replace("validation: 0.2", "validation: 0")
        notes.append(f"no image is held out for validation, because a class has {fewest} labels")
    if pretrained is not None:
        text = text.replace("pretrained: true", f"pretrained: {json.dumps(pretrained)}")
    write_atomically(output, text)
    lines = [f"{count:,} images {split}" for split, count in sorted(found.splits.items())]
    lines += [f"class {label}: {count:,} labels" for label, count in found.labels.items()][:20]
    if found.sides:
        lines.append(f"shorter sides {found.sides[0]} to {found.sides[2]} pixels; images will be resized to {size}")
    return [*lines, *found.notes, *notes]


def _choose(median: int, weights: str | Path | None) -> tuple[Template, str | None, list[str]]:
    """Returns the template, the place of its weights (None: as it says), and notes about the choice."""
    if weights == NO_WEIGHTS or (weights is None and median < PHOTOGRAPH):
        return SMALL, None, []
    import torch

    template = PHOTOS_GPU if torch.cuda.is_available() else PHOTOS
    starts = f"the networks start from pretrained weights of {template.network}"
    if weights is not None:
        return template, _checked(template.network, weights), [f"{starts}: {weights}"]
    try:
        source = _published(template.network)
    except ConfigError as error:
        return SMALL, None, [f"no pretrained weights: {error} Then start again with another --output."]
    if source.here is not None or _can_be_fetched(source):
        return template, None, [f"{starts} ({source.facts.source}, licence {source.facts.licence or 'unknown'})"]
    return (
        SMALL,
        None,
        [
            f"no pretrained weights: {source.facts.source} is not on this machine and cannot be fetched from here. "
            "With them, photographs need far fewer labels. Fetch them on another machine, and give the file: "
            "selftrain init … --weights FILE"
        ],
    )


def _published(network: str) -> "Source":
    from selftrain.models.sources import find_source

    return find_source(model_settings(network, pretrained=True))


def _checked(network: str, weights: str | Path) -> str:
    """Returns the weights as a recipe names them, a file by its whole path; raises ConfigError for a wrong place."""
    from selftrain.models.settings import check_safetensors, weights_file

    model = model_settings(network, str(weights))
    if (file := weights_file(model)) is None:
        return str(weights)
    check_safetensors(file, "--weights")
    return str(file.absolute())


def _can_be_fetched(source: "Source") -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    try:
        with urlopen(Request(source.address, method="HEAD"), timeout=PATIENCE):
            return True
    except (URLError, TimeoutError, OSError, ValueError):
        return False
