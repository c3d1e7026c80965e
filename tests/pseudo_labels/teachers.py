"""Small real data sets and untrained networks, for tests of predicting."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selftrain.models import ModelSettings, build_model
from selftrain.ssl_tasks.data.order import key_of
from selftrain.ssl_tasks.data.sources import fingerprint
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.data import DataSettings, FolderSource, SplitSettings, SyntheticSource
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.model import Card, save_trained

SIZE, CLASSES = 8, 4


def synthetic(workspace: Path, size: int = 400, **split: float) -> Artifact:
    """Coloured shapes of 8×8 pixels in four classes."""
    source = SyntheticSource(name="synthetic", size=size, test_size=20, classes=CLASSES, image_size=SIZE)
    chosen = {"labels_per_class": 3, "validation": 60, "unlabeled_includes_labeled": False} | split
    settings = DataSettings(source=source, split=SplitSettings.model_validate(chosen))
    request = Request("dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", settings)
    return execute(request, workspace, RuntimeSettings(threads=1)).artifact


def draw_pictures(folder: Path, unlabeled: list[str]) -> None:
    """Class folders of a few pictures each, drawn once, and unlabelled ones of these names."""
    names = [f"class-{label:03d}/{number}" for label in range(CLASSES) for number in range(12)]
    for name in [*names, *(f"unlabeled/{one}" for one in unlabeled)]:
        path = folder / f"{name}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(key_of(name)).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(path)


def from_folder(workspace: Path, folder: Path) -> Artifact:
    """The data set of `draw_pictures`."""
    settings = DataSettings(
        source=FolderSource(name="folder", path=folder),
        split=SplitSettings(validation=12, test=12, unlabeled_includes_labeled=False),
        max_unreadable=0.1,
    )
    digest = fingerprint(settings, workspace / "cache")
    request = Request(
        "dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", settings, depends={"source": digest}
    )
    return execute(request, workspace, RuntimeSettings(threads=1)).artifact


def teacher(folder: Path, seed: int = 0, classes: tuple[str, ...] | None = None, gain: float = 30.0) -> Artifact:
    """A network that says something of every image, by chance."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = ModelSettings(name="small_cnn", width=4)
    names = classes or tuple(f"class-{number:03d}" for number in range(CLASSES))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_model(settings, len(names), 3, SIZE)
        network.eval()
        with torch.no_grad():  # so that it does not say one class of all images, and is more or less sure
            usual = network.features(torch.randn(64, 3, SIZE, SIZE))
            network.head.weight.mul_(gain)
            network.head.bias.copy_(-network.head(usual).mean(dim=0))
    card = Card(
        model=settings,
        classes=names,
        in_channels=3,
        image_size=SIZE,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        precision="fp32",
    )
    save_trained(folder, network, card)
    return Artifact(folder, {"stage": "train", "key": f"teacher-{seed}", "digest": f"teacher-{seed}"})
