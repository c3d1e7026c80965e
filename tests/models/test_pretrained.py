"""First weights from a file: all of the body or an error; a head of another size starts afresh, and that is said."""

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selftrain.models import ModelSettings, build_model
from selftrain.models.pretrained import converted
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
    with pytest.raises(ConfigError, match="does not exist"):
        build_model(ModelSettings(pretrained=tmp_path / "nowhere.safetensors"), 4)
    text = tmp_path / "text.safetensors"
    text.write_text("weights")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        build_model(ModelSettings(pretrained=text), 4)


def test_a_pickle_and_a_file_that_is_cut_off_are_refused(tmp_path: Path) -> None:
    state = build_model(ModelSettings(name="mlp"), 4).state_dict()
    for name, save in (("zip", torch.save), ("old", partial(torch.save, _use_new_zipfile_serialization=False))):
        pickled = tmp_path / f"{name}.safetensors"
        save(state, pickled)
        with pytest.raises(ConfigError, match=r"wrote it\. Save a state dict with safetensors\.torch\.save_file"):
            build_model(ModelSettings(name="mlp", pretrained=pickled), 4)
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file(state, whole)
    for length in (4, 60, whole.stat().st_size - 1):
        cut.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(ConfigError, match="cut off"):
            build_model(ModelSettings(name="mlp", pretrained=cut), 4)


def test_position_embeddings_of_timm_are_resampled_to_the_images(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    path, name = tmp_path / "vit.safetensors", "timm:test_vit"
    native = build_model(ModelSettings(name=name), 4, image_size=160)
    save_file(native.body.state_dict(), path)
    settings = ModelSettings(name=name, pretrained=path)
    same, smaller = (build_model(settings, 4, image_size=size) for size in (160, 112))
    assert all(torch.equal(one, same.body.state_dict()[key]) for key, one in native.body.state_dict().items())
    taken, given = smaller.body.state_dict(), native.body.state_dict()
    assert taken["pos_embed"].shape == (1, 1 + 7 * 7, 64)
    assert torch.equal(taken["pos_embed"][:, :1], given["pos_embed"][:, :1])
    middle = taken["pos_embed"][0, 1:].reshape(7, 7, -1)[3, 3]
    around = given["pos_embed"][0, 1:].reshape(10, 10, -1)[4:6, 4:6].mean(dim=(0, 1))
    assert torch.nn.functional.cosine_similarity(middle, around, dim=0) > 0.8
    assert all(torch.equal(one, taken[key]) for key, one in given.items() if key != "pos_embed")
    with pytest.raises(ConfigError, match="cannot take 100×100 images"):
        build_model(settings, 4, image_size=100)


def test_position_embeddings_of_torchvision_are_resampled_to_the_images() -> None:
    def vit(size: int) -> torch.nn.Module:
        sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
        return torchvision.models.VisionTransformer(image_size=size, patch_size=8, **sizes)

    native, larger = vit(32).state_dict(), vit(64)
    found = converted(larger, dict(native), Path("vit.safetensors"), 64)
    assert found["encoder.pos_embedding"].shape == (1, 1 + 8 * 8, 8)
    larger.load_state_dict(found)


def test_images_of_other_channels_are_said(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict(), path)
    with pytest.raises(ConfigError, match=r"\[24, 3, 3, 3\] in the file and \[24, 1, 3, 3\] .*data\.channels"):
        build_model(ModelSettings(name="torchvision:shufflenet_v2_x0_5", pretrained=path), 5, in_channels=1)
