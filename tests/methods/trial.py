"""A method at work on a tiny problem, stepped as the training engine does: what the tests of methods share."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from selftrain.models import ModelSettings, build_model
from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, View, Views
from selftrain.ssl_tasks.methods import build_method
from selftrain.ssl_tasks.methods.base import Losses, Problem
from selftrain.ssl_tasks.methods.table import METHODS
from selftrain.ssl_tasks.settings.methods import MethodSettings
from selftrain.ssl_tasks.settings.section import Section

CLASSES = 4
SETTINGS: dict[str, type[Section]] = {
    one.model_fields["name"].default: one for one in get_args(get_args(MethodSettings)[0])
}
PROBLEM = Problem(CLASSES, 8, 16, steps=6, batch_size=4, unlabeled_batch=8, class_prior=(0.4, 0.3, 0.2, 0.1))


def settings_of(name: str, **knobs: Any) -> Section:
    """A method's settings, its defaults but for the knobs."""
    return SETTINGS[name](**knobs)


def images_of(seed: int, count: int) -> Tensor:
    """Noise images [count, 1, 8, 8]."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def batch_of(views: Views, step: int = 0, labeled: int = 4, unlabeled: int = 8) -> Batch:
    """Step `step`'s images: which ones is a plain walk through the pools, what they look like is random."""

    def draw(kinds: tuple[View, ...], count: int, seed: int) -> tuple[Tensor, ...]:
        drawn = (1000 * step + 100 * get_args(View).index(kind) + 10 * seed for kind in kinds)
        return tuple(images_of(first + number, count) for number, first in enumerate(drawn))

    index = torch.arange(unlabeled) + unlabeled * step
    soft = torch.rand(unlabeled, CLASSES, generator=torch.Generator().manual_seed(step))
    targets = torch.where(
        index[:, None] % 2 == 0, soft / soft.sum(1, keepdim=True), torch.eye(CLASSES)[index % CLASSES]
    )
    return Batch(
        labeled=draw(views.labeled, labeled, 1),
        labels=torch.arange(labeled) % CLASSES,
        labeled_index=(torch.arange(labeled) + labeled * step) % PROBLEM.num_labeled,
        unlabeled=draw(views.unlabeled, unlabeled, 2),
        unlabeled_index=index % PROBLEM.num_unlabeled,
        pseudo=draw(views.pseudo, unlabeled, 3),
        pseudo_targets=targets,
        pseudo_index=index % PROBLEM.num_unlabeled,
        unlabeled_truth=index % (CLASSES + 1) - 1,  # every fifth is unknown
    )


def tiny_network(dropout: float = 0.0) -> Classifier:
    """One convolution with batch norm, and a head on all of it: alike whatever becomes of the models."""
    body = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
    return Classifier(body, 256, CLASSES, dropout)


def student_of(seed: int = 0, sharpness: float = 4.0, model: str | None = None, dropout: float = 0.0) -> Classifier:
    """A network (tiny, or by name) whose head is scaled, so that some predictions are sure and others are not."""
    torch.manual_seed(seed)
    settings = ModelSettings(name=model or "mlp", width=8, dropout=dropout)
    network = build_model(settings, CLASSES, 1, 8) if model else tiny_network(dropout)
    with torch.no_grad():
        network.head.weight.mul_(sharpness)
    return network


def drawn_anew(network: Classifier) -> Classifier:
    """Another network of the same kind with fresh weights."""
    another = copy.deepcopy(network)
    for module in another.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
    return another


def pixel_student() -> Classifier:
    """A network whose logits are the image's pixels, so that a test chooses the predictions."""
    network = Classifier(nn.Flatten(), CLASSES, CLASSES)
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(CLASSES))
        network.head.bias.zero_()
    return network


def pixels(*logits: Sequence[float]) -> Tensor:
    """Images that `pixel_student` predicts with these logits."""
    return torch.tensor(logits).view(len(logits), 1, 1, CLASSES)


def pixel_batch(
    labeled: Sequence[Tensor], labels: Sequence[int], unlabeled: Sequence[Tensor], index: Sequence[int] | None = None
) -> Batch:
    """A batch of such images."""
    count = len(unlabeled[0]) if unlabeled else 0
    return Batch(
        tuple(labeled),
        torch.tensor(labels),
        torch.arange(len(labels)),
        tuple(unlabeled),
        torch.arange(count) if index is None else torch.tensor(index),
    )


def softmax(logits: Sequence[Sequence[float]]) -> np.ndarray:
    """Rows of probabilities, in numpy: for formulas that owe nothing to the code under test."""
    values = np.exp(np.asarray(logits, dtype=np.float64))
    return values / values.sum(axis=-1, keepdims=True)


def problem_of(**sizes: Any) -> Problem:
    """The tiny problem with other sizes."""
    return replace(PROBLEM, **sizes)


class TinyPools:
    """Passes over pools of noise."""

    def labeled(self, view: View = "none") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        labels = torch.arange(PROBLEM.num_labeled) % CLASSES
        yield torch.arange(PROBLEM.num_labeled), images_of(77, PROBLEM.num_labeled), labels

    def unlabeled(self, view: View = "none") -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.arange(PROBLEM.num_unlabeled), images_of(78, PROBLEM.num_unlabeled)


class Trial:
    """A student, a method and an optimizer, which take one step after the other."""

    def __init__(self, settings: Section, problem: Problem = PROBLEM, student: Classifier | None = None) -> None:
        self.problem = problem
        self.student = student_of() if student is None else student
        self.method = build_method(settings, problem)  # type: ignore[arg-type]
        self.method.another = lambda: drawn_anew(self.student)
        torch.manual_seed(1)
        self.method.before_training(self.student)
        parameters = [one for one in [*self.student.parameters(), *self.method.parameters()] if one.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def step(self, number: int, batch: Batch | None = None) -> Losses:
        """One step of training, in the engine's order."""
        batch = batch_of(self.method.views, number) if batch is None else batch
        every = self.method.refresh_every()
        torch.manual_seed(100 + number)
        since = number - self.method.refresh_from()
        if every is not None and since >= 0 and since % every == 0:
            self.method.before_epoch(self.student, TinyPools())
        progress = number / max(1, self.problem.steps - 1)
        self.student.train()
        if (own_step := getattr(self.method, "train_step", None)) is not None:
            losses = own_step(self.student, self.optimizer, batch, progress)
        else:
            losses = self.method.loss(self.student, batch, progress)
            self.optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            self.optimizer.step()
        with torch.no_grad():
            self.method.after_step(self.student)
        return losses

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that is saved, and of the momenta."""
        state = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        state |= {f"method.{name}": value for name, value in self.method.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            state[f"optimizer.{number}"] = moments["momentum_buffer"]
        return {name: value.clone() for name, value in state.items() if value is not None}

    def load(self, state: dict[str, Tensor]) -> None:
        """Resumes from a state."""
        parts = {
            part: {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
            for part in ("student", "method", "optimizer")
        }
        self.student.load_state_dict(parts["student"])
        self.method.load_state_dict(parts["method"])
        moments = {int(number): {"momentum_buffer": value.clone()} for number, value in parts["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def gradients(network: nn.Module) -> list[Tensor]:
    """The gradients that a network's parameters have."""
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are alike, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


METHOD_NAMES = sorted(METHODS)
