"""The supervised baseline: smoothing, weights, MixUp and CutMix by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.methods.base import Problem
from selftrain.ssl_tasks.methods.supervised import Supervised, mixed_cross_entropy, paste_rectangle
from selftrain.ssl_tasks.settings.methods import SupervisedSettings

PROBLEM = Problem(3, 4, 0, 10, 4, 0, (1 / 3, 1 / 3, 1 / 3))
LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 1])
LOG_Z = [math.log(math.exp(2) + 2), math.log(math.exp(1) + 2)]


def batch_of(images: Tensor, labels: Tensor, weights: Tensor | None = None) -> Batch:
    return Batch((images,), labels, torch.arange(len(labels)), label_weights=weights)


def pixels() -> Classifier:
    """A network whose features are the image's pixels, and whose logits are linear in them."""
    torch.manual_seed(0)
    return Classifier(nn.Flatten(), 9, 3)


def test_mixed_loss_is_the_cross_entropy_of_the_mixed_target() -> None:
    partner, share = torch.tensor([1, 0]), 0.7
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.3, 0.7, 0.0]])
    expected = -(targets * LOGITS.log_softmax(1)).sum(1).mean()
    assert mixed_cross_entropy(LOGITS, LABELS, None, 0.0, partner, share).item() == pytest.approx(expected.item())


def test_mixup_gives_the_network_mixed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    student = pixels()
    student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.tensor([0.0, 10.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    monkeypatch.setattr("selftrain.ssl_tasks.methods.supervised.draw_lambda", lambda *_: torch.tensor([0.7]))
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor([1, 0]))
    Supervised(SupervisedSettings(mixup=1.0), PROBLEM).loss(student, batch_of(images, torch.tensor([0, 1])), 0.0)
    assert seen[0][:, 0, 0, 0].tolist() == pytest.approx([3.0, 7.0])


def test_cutmix_pastes_a_rectangle_of_one_minus_lambda() -> None:
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    mixed, share = paste_rectangle(images, torch.tensor([1, 0]), 0.75, (0.5, 0.5))
    assert share == 0.75
    assert mixed[0, 0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert images[0].sum() == 0


def test_cutmix_at_the_border_counts_what_is_left_of_the_rectangle() -> None:
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    mixed, share = paste_rectangle(images, torch.tensor([1, 0]), 0.75, (0.0, 0.0))
    assert (share, mixed[0].sum().item()) == (15 / 16, 1)


@pytest.mark.parametrize("knobs", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 0.5}])
def test_mixing_changes_the_loss_and_repeats_under_one_seed(knobs: dict[str, float]) -> None:
    images, labels = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])

    def loss(**settings: float) -> float:
        student = pixels()
        torch.manual_seed(3)
        return (
            Supervised(SupervisedSettings(**settings), PROBLEM)
            .loss(student, batch_of(images, labels), 0.0)
            .total.item()
        )

    assert loss(**knobs) == loss(**knobs)
    assert loss(**knobs) != loss()


def test_mixing_reads_the_weights_of_both_labels() -> None:
    weights = torch.tensor([2.0, 0.0])
    loss = mixed_cross_entropy(LOGITS, LABELS, weights, 0.0, torch.tensor([1, 0]), 0.7)
    # each label keeps its weight: image 0 pays 0.7 · 2 · CE(0) + 0.3 · 0, image 1 pays 0.7 · 0 + 0.3 · 2 · CE(0)
    assert loss.item() == pytest.approx((0.7 * 2 * (LOG_Z[0] - 2) + 0.3 * 2 * LOG_Z[1]) / 2)
