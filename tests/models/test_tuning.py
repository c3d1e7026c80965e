"""What is trained of a network: low-rank additions and their merging, layers and their learning rates."""

import pytest
import torch
from torch import Tensor, nn

from selftrain.models import ModelSettings, build_model
from selftrain.models.classifier import Classifier
from selftrain.models.settings import LoraSettings
from selftrain.models.tuning import layers, lora_layers, merged, rate_factors, tune
from selftrain.ssl_tasks.errors import ConfigError

LORA = LoraSettings(rank=2, alpha=6.0)


def network(name: str = "wrn-10-1") -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelSettings(name=name), 4, 3, 16)


def trained(one: Classifier) -> set[str]:
    return {name for name, parameter in one.named_parameters() if parameter.requires_grad}


def images(seed: int = 0) -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["wrn-10-1", "mlp-2"])
def test_low_rank_additions_begin_as_nothing_and_are_merged_into_the_weights(name: str) -> None:
    plain, tuned = network(name).eval(), network(name)
    tune(tuned, "lora", LORA)
    tuned.eval()
    assert torch.equal(plain(images()), tuned(images()))
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if ".lora." in key:
                parameter.normal_(std=0.02)
    assert not torch.allclose(plain(images()), tuned(images()))
    plain.load_state_dict(merged(tuned.state_dict(), scale=6.0 / 2))
    assert torch.allclose(plain(images()), tuned(images()), rtol=1e-4, atol=1e-4)


def test_merging_is_the_weight_plus_the_scaled_product() -> None:
    state = {
        "body.0.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "body.0.lora.down.weight": torch.tensor([[1.0, 10.0]]),
        "body.0.lora.up.weight": torch.tensor([[1.0], [0.5]]),
    }
    assert merged(state, 2.0)["body.0.weight"].tolist() == [[3.0, 22.0], [4.0, 14.0]]


def test_what_each_kind_of_tuning_trains() -> None:
    head = {"head.weight", "head.bias"}
    found = {}
    for what in ("all", "head", "norms", "lora", "last-1"):
        one = network()
        tune(one, what, LORA)
        found[what] = trained(one)
    whole = {name for name, _ in network().named_parameters()}
    assert found["all"] == whole
    assert found["head"] == head
    assert found["norms"] == head | {name for name in whole if ".norm" in name}
    assert found["last-1"] == head | {name for name in whole if name.startswith(("body.blocks.2.", "body.norm."))}
    assert head < found["lora"]
    assert all(".lora." in name for name in found["lora"] - head)
    assert len(found["lora"] - head) == 2 * len(lora_layers(network().body, LORA)) > 0


def test_frozen_batch_norms_keep_their_statistics_and_trained_ones_do_not() -> None:
    for what, moves in (("head", False), ("lora", False), ("norms", True), ("last-1", True)):
        one = network()
        tune(one, what, LORA)
        before = {name: value.clone() for name, value in one.named_buffers()}
        one.train()(images())
        moved = {name for name, value in one.named_buffers() if not torch.equal(value, before[name])}
        assert bool(moved) == moves, what
        if what == "last-1":
            assert all(name.startswith(("body.blocks.2.", "body.norm.")) for name in moved)


def test_targets_choose_layers_by_parts_of_their_names() -> None:
    body = network("mlp-3").body
    assert list(lora_layers(body, LoraSettings(targets=("layers.0",)))) == ["layers.0"]
    with pytest.raises(ConfigError, match="'qvk' is in the name of no linear or 1×1 convolutional layer"):
        lora_layers(body, LoraSettings(targets=("layers.0", "qvk")))
    with pytest.raises(ConfigError, match="has neither linear layers nor 1×1 convolutions"):
        tune(network("small_cnn"), "lora", LORA)
    with pytest.raises(ConfigError, match=r"train\.tune is last-9, and the network has 4 layers"):
        tune(network(), "last-9", LORA)
    with pytest.raises(ConfigError, match=r"train\.tune is norms, and the network has none"):
        tune(network("mlp"), "norms", LORA)


@pytest.mark.parametrize("name", ["wrn-10-1", "small_cnn", "mlp-3", "torchvision:shufflenet_v2_x0_5"])
def test_layers_are_all_of_a_body_and_each_begins_with_a_kernel(name: str) -> None:
    body = network(name).body
    found = layers(body)
    assert [id(one) for layer in found for one in layer] == [id(one) for one in body.parameters()]
    assert all(any(one.ndim >= 2 for one in layer) for layer in found)
    assert len(found) > 2


def test_learning_rates_fall_by_a_factor_for_each_layer_below_the_head() -> None:
    body = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    one = Classifier(body, 3, 2)
    factors = rate_factors([one], head=4.0, layer_decay=0.5)
    assert factors[one.head.weight] == factors[one.head.bias] == 4.0
    assert factors[body[2].weight] == factors[body[2].bias] == 0.5
    assert factors[body[0].weight] == factors[body[1].weight] == 0.25
