"""Weights from a hub, a URL or a library's list: fetched once, kept, described; and refused in one sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from selftrain import fetch_weights, find_weights, weights
from selftrain.models import ModelSettings
from selftrain.models.sources import find_source, obtain
from selftrain.ssl_tasks.errors import ConfigError, NotFound
from selftrain.ssl_tasks.training.launch import free_port
from tests.models.hub import publish, serving

pytest.importorskip("timm")
hub = pytest.importorskip("huggingface_hub.constants")

OWN = "timm/test_vit.r160_in1k"
TOLD = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "license": "mit", "input_size": [3, 64, 64], "crop_pct": 0.9}


def state() -> dict[str, Tensor]:
    return {"weight": torch.arange(4.0)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is published; caches of this test's own."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    published = tmp_path / "published"
    publish(published, OWN, save(state()), architecture="test_vit", pretrained_cfg=TOLD)
    publish(published, "org/plain", save(state()))
    (published / "org" / "bare").mkdir()
    return published


def reach(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The hub is at this address."""
    monkeypatch.setattr(hub, "ENDPOINT", address)
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(folder) as address:
        reach(monkeypatch, address)
        yield address


@pytest.fixture
def unreachable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, f"http://127.0.0.1:{free_port()}")


def model(pretrained: Any, name: str = "timm:test_vit") -> ModelSettings:
    return ModelSettings(name=name, pretrained=pretrained)


@pytest.mark.parametrize("pretrained", [True, "r160_in1k", OWN, f"hf-hub:{OWN}", f"{OWN}@main"])
def test_a_hubs_weights_come_with_what_config_json_says(served: str, folder: Path, pretrained: Any) -> None:
    seen: list[tuple[int, int]] = []
    found = obtain(model(pretrained), lambda done, total: seen.append((done, total)))
    assert found.file is not None
    whole = (folder / OWN / "model.safetensors").read_bytes()
    assert found.file.read_bytes() == whole
    assert seen[-1] == (len(whole), len(whole))
    assert found.facts.source.partition("@")[0] == OWN
    assert found.facts.mean == (0.1, 0.2, 0.3)
    assert (found.facts.licence, found.facts.image_size, found.facts.crop) == ("mit", 64, 0.9)


def test_what_was_fetched_needs_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder) as address:
        reach(monkeypatch, address)
        first = fetch_weights("timm:test_vit")
    assert fetch_weights("timm:test_vit") == first
    assert find_weights("timm:test_vit") == first
    listed = weights("timm:test_vit").set_index("network")
    assert Path(listed.loc["timm:test_vit", "here"]) == first
    assert listed.loc["timm:test_vit", "tag"] == "r160_in1k"


@pytest.mark.parametrize(
    ("pretrained", "name", "sentence"),
    [
        ("org/nothing", "timm:test_vit", r"org/nothing does not exist on the hub, or is private \(HTTP 401\)"),
        ("org/gated", "timm:test_vit", r"org/gated asks for its licence to be accepted \(HTTP 403\)"),
        ("org/plain@v2", "timm:test_vit", "org/plain has no revision 'v2'"),
        ("org/bare", "timm:test_vit", r"org/bare has no model\.safetensors"),
        (OWN, "timm:resnet18", "holds weights of test_vit, and the network is resnet18"),
        ("r161_in1k", "timm:test_vit", "no weights with the tag 'r161_in1k' of test_vit. Did you mean 'r160_in1k'"),
        (True, "timm:test_vti", "timm has no model 'test_vti'. Did you mean 'test_vit'"),
        ("IMAGENET", "torchvision:resnet18", "no weights 'IMAGENET' of resnet18. Did you mean 'IMAGENET1K_V1'"),
    ],
)
def test_what_a_hub_does_not_give_is_said_in_one_sentence(
    served: str, pretrained: Any, name: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        obtain(model(pretrained, name))
    assert "\n" not in str(error.value)


def test_a_file_that_the_hub_gives_cut_off_is_refused(served: str, folder: Path) -> None:
    whole = save({"weight": torch.zeros(1000)})
    publish(folder, "org/cut", whole[:2000])
    with pytest.raises(ConfigError, match=r"has 2,000 bytes and says that it has 4,0\d\d: it is cut off"):
        obtain(model("org/cut"))


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:resnet18"])
def test_without_a_network_the_file_the_address_and_the_place_are_named(unreachable: None, name: str) -> None:
    source = find_source(model(True, name))
    if name.startswith("timm"):
        with pytest.raises(ConfigError, match="is not on this machine and the hub cannot be reached") as error:
            obtain(model(True, name))
        assert source.address in str(error.value)
        assert str(source.place) in str(error.value)
    with pytest.raises(NotFound, match="are not on this machine") as missing:
        find_weights(name)
    assert source.address in str(missing.value)
    source.place.parent.mkdir(parents=True, exist_ok=True)
    source.place.write_bytes(save(state()))
    assert find_weights(name) == source.place
    assert source.place.suffix == (".safetensors" if name.startswith("timm") else ".pth")


def test_a_file_of_an_url_is_fetched_once(served: str, folder: Path) -> None:
    url = f"{served}/{OWN}/resolve/main/model.safetensors"
    first = obtain(model(url))
    assert first.file is not None
    assert first.file.read_bytes() == save(state())
    (folder / OWN / "model.safetensors").unlink()
    assert obtain(model(url)).file == first.file
    with pytest.raises(ConfigError, match=r"answers HTTP 401"):
        obtain(model(f"{served}/org/nothing/resolve/main/model.safetensors"))
    with pytest.raises(ConfigError, match=r"cannot be reached .* on another machine and put it here as"):
        obtain(model(f"http://127.0.0.1:{free_port()}/model.safetensors"))


@pytest.mark.parametrize(
    ("name", "pretrained", "sentence"),
    [
        ("timm:test_vit", "http://example.org/model.safetensors", "expected https://"),
        ("timm:test_vit", "https://example.org/model.pth", r"expected the URL of a \.safetensors file"),
        ("timm:test_vit", "hub:org/name", "expected true, a tag, a hub id such as"),
        ("small_cnn", True, "there are no published weights of small_cnn"),
        ("small_cnn", "in1k", "there are no published weights of small_cnn"),
    ],
)
def test_places_that_mean_nothing_are_refused_when_a_recipe_is_read(name: str, pretrained: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        model(pretrained, name)


def test_torchvisions_facts_are_those_of_its_transforms(folder: Path) -> None:
    facts = find_source(model("IMAGENET1K_V2", "torchvision:resnet50")).facts
    assert (facts.image_size, facts.interpolation, facts.crop) == (224, "bilinear", 0.966)
    assert facts.mean == (0.485, 0.456, 0.406)
    assert set(weights("torchvision:resnet50")["tag"]) == {"IMAGENET1K_V1", "IMAGENET1K_V2"}
