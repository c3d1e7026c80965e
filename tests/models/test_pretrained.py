"""First weights from a file: all of the body or an error; a head of another size starts afresh, and that is said."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selftrain.models import ModelSettings, build_model
from selftrain.models.torchvision_import import torchvision
from selftrain.ssl_tasks.errors import ConfigError


def test_a_saved_network_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved = build_model(ModelSettings(name="small_cnn"), 4)
    save_file(saved.state_dict(), path)
    loaded = build_model(ModelSettings(name="small_cnn", pretrained=path), 4)
    assert all(torch.equal(weight, saved.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_a_head_of_another_size_starts_afresh_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "model.safetensors"
    saved = build_model(ModelSettings(name="small_cnn"), 4)
    save_file(saved.state_dict(), path)
    with caplog.at_level(logging.WARNING):
        loaded = build_model(ModelSettings(name="small_cnn", pretrained=path), 7)
    assert "the head does not fit 7 classes" in caplog.text
    assert loaded.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    body = saved.body.state_dict()
    assert all(torch.equal(weight, body[name]) for name, weight in loaded.body.state_dict().items())


def test_torchvisions_own_names_are_understood(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "shufflenet.safetensors"
    native = torchvision.models.shufflenet_v2_x0_5(weights=None)
    save_file(native.state_dict(), path)
    loaded = build_model(ModelSettings(name="torchvision:shufflenet_v2_x0_5", pretrained=path), 5)
    assert torch.equal(loaded.body.state_dict()["conv1.0.weight"], native.conv1[0].weight)
    assert "starts afresh" in caplog.text


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(build_model(ModelSettings(name="small_cnn"), 4).state_dict(), path)
    with pytest.raises(ConfigError, match="does not fit this network: the file lacks body"):
        build_model(ModelSettings(name="wrn-10-1", pretrained=path), 4)
    with pytest.raises(ConfigError, match=r"is \[32, 3, 3, 3\] in the file and \[32, 1, 3, 3\] in the network"):
        build_model(ModelSettings(name="small_cnn", pretrained=path), 4, in_channels=1)


def test_files_that_are_missing_or_no_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        build_model(ModelSettings(pretrained=tmp_path / "nowhere.safetensors"), 4)
    text = tmp_path / "text.safetensors"
    text.write_text("weights")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        build_model(ModelSettings(pretrained=text), 4)
