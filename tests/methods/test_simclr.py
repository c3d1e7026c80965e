"""SimCLR: the contrast, the projection head, the probe."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from selftrain.ssl_tasks.methods.simclr import nt_xent, projection_head, with_other_ranks
from tests.methods.trial import CLASSES, Trial, batch_of, gradients, settings_of
from tests.warm import call


def by_loops(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """The paper's double sum, one term at a time."""
    views = np.concatenate([first, second])
    n = len(first)
    losses = []
    for i in range(2 * n):
        scores = [
            np.dot(views[i], views[k]) / np.linalg.norm(views[i]) / np.linalg.norm(views[k]) / temperature
            for k in range(2 * n)
        ]
        others = sum(math.exp(scores[k]) for k in range(2 * n) if k != i)
        losses.append(-math.log(math.exp(scores[(i + n) % (2 * n)]) / others))
    return float(np.mean(losses))


def test_nt_xent_is_the_papers_double_sum() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    loss, _ = nt_xent(first, second, 0.5)
    assert loss.item() == pytest.approx(by_loops(first.numpy(), second.numpy(), 0.5), rel=1e-5)


def test_the_official_codes_sum_of_both_sides_is_twice_the_loss() -> None:
    torch.manual_seed(0)
    first, second = (nn.functional.normalize(torch.randn(5, 3), dim=1) for _ in range(2))
    apart = -1e9 * torch.eye(5)  # no view with itself
    sides = [
        nn.functional.cross_entropy(torch.cat([one @ other.T, one @ one.T + apart], 1) / 0.5, torch.arange(5))
        for one, other in ((first, second), (second, first))
    ]
    assert sum(sides).item() == pytest.approx(2 * nt_xent(first, second, 0.5)[0].item(), rel=1e-5)


def test_equal_views_of_orthogonal_images_by_hand() -> None:
    loss, nearest = nt_xent(torch.eye(3), torch.eye(3), 1.0)
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 4)), rel=1e-5)
    assert nearest == 1


def test_a_single_image_has_no_contrast_loss() -> None:
    assert nt_xent(torch.ones(1, 4), -torch.ones(1, 4), 0.1)[0] == 0


def test_length_does_not_matter() -> None:
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    assert nt_xent(first, second, 0.2)[0].item() == pytest.approx(
        nt_xent(5 * first, second / 7, 0.2)[0].item(), rel=1e-4
    )


def test_heads_have_as_many_layers_as_asked_for() -> None:
    for layers in (1, 2, 3):
        linear = [module for module in projection_head(8, 4, layers) if isinstance(module, nn.Linear)]
        assert [module.out_features for module in linear] == [8] * (layers - 1) + [4]


def test_contrast_trains_body_and_projection_and_the_probe_the_head_alone() -> None:
    def bodies(**knobs: float) -> tuple[torch.Tensor, Trial]:
        trial = Trial(settings_of("simclr", **knobs))
        trial.student.train()
        trial.method.loss(trial.student, batch_of(trial.method.views), 0.0).total.backward()
        return torch.cat([grad.flatten() for grad in gradients(trial.student.body)]), trial

    with_probe, trial = bodies(probe_weight=5.0)
    without, unprobed = bodies(probe_weight=0.0)
    assert torch.equal(with_probe, without)
    assert with_probe.abs().sum() > 0
    assert all(grad.abs().sum() > 0 for grad in gradients(trial.method.projection))
    assert trial.student.head.weight.grad is not None
    assert trial.student.head.weight.grad.abs().sum() > 0
    assert unprobed.student.head.weight.grad is not None
    assert unprobed.student.head.weight.grad.abs().sum() == 0


def test_the_probe_is_the_cross_entropy_of_the_students_own_head() -> None:
    trial = Trial(settings_of("simclr"))
    trial.student.eval()
    batch = batch_of(trial.method.views)
    losses = trial.method.loss(trial.student, batch, 0.0)
    expected = torch.nn.functional.cross_entropy(trial.student(batch.labeled[0]), batch.labels)
    assert losses.logs["supervised"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert trial.student.head.out_features == CLASSES


def contrast_in_a_rank(number: int, store: str, rows: torch.Tensor, weight: torch.Tensor, results: str) -> None:
    """One of two processes: the gradient of its half of the images."""
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=number, world_size=2)
    weight = weight.clone().requires_grad_()
    first, second = (view[2 * number : 2 * number + 2] @ weight for view in rows)
    loss, _ = nt_xent(with_other_ranks(first), with_other_ranks(second), 0.5)
    (2 * loss).backward()
    assert weight.grad is not None
    torch.distributed.all_reduce(weight.grad)
    torch.save(weight.grad / 2, f"{results}/{number}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_contrast_the_images_of_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(2, 4, 6), torch.randn(6, 5, requires_grad=True)
    nt_xent(rows[0] @ weight, rows[1] @ weight, 0.5)[0].backward()
    store = (str(tmp_path / "store"), rows, weight.detach(), str(tmp_path))
    for process in [call(contrast_in_a_rank, number, *store) for number in range(2)]:
        said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    for number in (0, 1):
        found = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert torch.allclose(found, weight.grad, atol=1e-6)
