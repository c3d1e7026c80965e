"""A trained network reads raw images, in any number format, of any size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selftrain.flows.rounds.stages import dataset_request
from selftrain.models import ModelSettings, build_model
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import DamagedArtifact, DataError
from selftrain.ssl_tasks.execution.stage import execute
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained import WEIGHTS
from selftrain.ssl_tasks.trained.classify import classify
from selftrain.ssl_tasks.trained.model import Card, load_card, load_trained, save_trained
from tests.training.small_runs import learner, train_in

MODEL = ModelSettings(name="small_cnn", width=4)
CARD = Card(
    model=MODEL, classes=("a", "b", "c"), in_channels=3, image_size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3)
)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_trained(tmp_path, build_model(MODEL, 3, 3, 16), CARD)
    return tmp_path


def test_images_are_normalised_as_the_card_says(folder: Path) -> None:
    expected = (IMAGES / 255.0 - np.array(CARD.mean)) / np.array(CARD.std)
    found = load_trained(folder, "cpu").normalise(IMAGES)
    assert found.permute(0, 2, 3, 1).numpy() == pytest.approx(expected, abs=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_logits_are_the_networks_in_evaluation_mode(folder: Path) -> None:
    torch.manual_seed(0)
    network = build_model(MODEL, 3, 3, 16).eval()
    trained = load_trained(folder, "cpu", "fp32")
    expected = network(trained.normalise(IMAGES)).detach()
    torch.testing.assert_close(trained.logits(IMAGES), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        trained.features(torch.from_numpy(IMAGES)),
        network.features(trained.normalise(IMAGES)).detach(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_bf16_is_near_fp32_and_gives_float32(folder: Path) -> None:
    exact, rough = (load_trained(folder, "cpu", precision).logits(IMAGES) for precision in ("fp32", "bf16"))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def test_the_card_decides_the_precision_by_default(tmp_path: Path) -> None:
    save_trained(tmp_path, build_model(MODEL, 3, 3, 16), CARD.model_copy(update={"precision": "fp32"}))
    assert load_trained(tmp_path, "cpu").dtype == torch.float32
    assert load_trained(tmp_path, "cpu", "bf16").dtype == torch.bfloat16


def test_other_image_sizes_are_read(folder: Path) -> None:
    assert load_trained(folder, "cpu").logits(np.zeros((2, 24, 20, 3), np.uint8)).shape == (2, 3)


def test_same_weights_are_the_same_bytes_in_any_memory_format(tmp_path: Path) -> None:
    network = build_model(MODEL, 3, 3, 16)
    for name, one in (("plain", network), ("channels_last", network.to(memory_format=torch.channels_last))):
        (tmp_path / name).mkdir()
        save_trained(tmp_path / name, one, CARD)
    assert (tmp_path / "plain" / WEIGHTS).read_bytes() == (tmp_path / "channels_last" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("images", [np.zeros((2, 16, 16, 1), np.uint8), np.zeros((2, 16, 16, 3), np.float32)])
def test_images_of_another_kind_are_refused(folder: Path, images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected uint8 images \[n, height, width, 3\]"):
        load_trained(folder, "cpu").logits(images)


def test_cut_weights_are_damage(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(DamagedArtifact, match="cannot be read as safetensors"):
        load_trained(folder, "cpu")


def test_new_images_are_resized_as_those_of_training_were(tmp_path: Path, dataset: Artifact) -> None:
    data = DataSettings(split=SplitSettings(labels_per_class=5), image_size=6, interpolation="bicubic", crop=0.75)
    cropped = execute(dataset_request(data, "digits"), tmp_path, RuntimeSettings(threads=1)).artifact
    model = train_in(tmp_path / "model", learner(steps=2), {"dataset": cropped})
    assert load_card(model.path).resizing == {"interpolation": "bicubic", "crop": 0.75}
    opened = Dataset.open(cropped, tmp_path / "cache")
    usual = Dataset.open(dataset, tmp_path / "usual").pool("validation").images(np.arange(1))[0, ..., 0]
    Image.fromarray(usual).save(tmp_path / "digit.png")
    row = classify(load_trained(model.path, "cpu"), [tmp_path / "digit.png"], 100).iloc[0]
    pixels = opened.pool("validation").images(np.arange(1))
    probs = load_trained(model.path, "cpu").logits(pixels).softmax(1)[0].tolist()
    assert [row[f"p_{name}"] for name in load_card(model.path).classes] == pytest.approx(probs, abs=1e-5)
