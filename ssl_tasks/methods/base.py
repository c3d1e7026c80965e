"""Defines the interface of a method: it gets tensors and returns losses, without backward, step, device or logger.

Two parts that several methods share are here too: a second network (`twin`), and the moving-average teacher of Mean
Teacher and ICT, which has its own batch-norm statistics.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, View, Views
from selftrain.ssl_tasks.execution.distributed import average_buffers
from selftrain.ssl_tasks.methods.math import weighted_cross_entropy


@dataclass(frozen=True)
class Losses:
    """The result of one step: the loss to minimise, and numbers to log as detached tensors (`.item()` would wait).

    All methods use the same names, so that runs are comparable: `supervised`, `unsupervised` (before its weight),
    `mask` (share of unlabelled images that count), `pseudo_accuracy` (of those that count, with known ground truth),
    `pseudo_largest_class` (share of the most frequent pseudo-label among those that count), `gradient_share` (of
    the weighted unsupervised loss, at the logits). The two on pseudo-labels are NaN if none counts.
    """

    total: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """The facts that a method needs when it is built."""

    num_classes: int
    num_labeled: int  # sizes of the pools, and so of per-sample memory
    num_unlabeled: int
    steps: int  # steps of the whole run
    batch_size: int  # labelled images per step, over all ranks
    unlabeled_batch: int  # unlabelled (or pseudo-labelled) images per step, over all ranks
    class_prior: tuple[float, ...]  # class shares of the labelled images
    warmup_steps: int = 0  # steps over which the learning rate first rises


class Pools(Protocol):
    """Passes over a whole pool in order, for methods that use all images between epochs; images are on the device."""

    def labeled(self, view: View = "none") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields (index, images, labels), batch by batch, in pool order."""
        ...

    def unlabeled(self, view: View = "none") -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (index, images), batch by batch, in pool order."""
        ...


class Method(nn.Module):
    """Base of all methods. Running quantities are buffers, so saving, resuming and moving need no code.

    `student(x)` gives logits, `student.features(x)` the penultimate features, `student.head(features)` the logits from
    these. `progress` runs from 0 (first step) to 1 (last step).
    Parameters of the method that require a gradient (a projection head) are optimised together with the student's.
    Before every step the engine seeds torch from (seed, step, rank): methods draw from torch's global generator.

    A method may define `train_step(student, optimizer, batch, progress) -> Losses` in place of `loss`: it then does
    its own backward passes and steps with the optimizer, which holds the student's and the method's parameters and
    leaves alone those without a gradient.
    """

    views: Views = Views()  # set by the class, or by the instance if their number is a setting
    mixes_labels: bool = False  # whether the method has its own loss of labelled images, which ignores logit adjustment
    another: Callable[[], Classifier]  # builds an untrained network of the student's kind; set by the engine

    def __init__(self, settings: Any, problem: Problem) -> None:
        super().__init__()
        self.settings, self.problem = settings, problem

    def before_training(self, student: Classifier) -> None:
        """Builds the method's own networks; called once before the optimizer is built and a state is loaded."""

    def refresh_every(self) -> int | None:
        """Returns the number of steps between two calls of `before_epoch`; None for never."""
        return None

    def refresh_from(self) -> int:
        """Returns the step before which `before_epoch` is first called."""
        return 0

    def before_epoch(self, student: Classifier, pools: Pools) -> None:
        """Prepares an epoch; called before step `refresh_from()` and then every `refresh_every()` steps."""

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        """Computes the losses of one step; each method defines this."""
        raise TypeError(f"{type(self).__name__} does not define its loss")

    def after_step(self, student: Classifier) -> None:
        """Updates the method after the optimizer's step, for example its teacher."""

    def evaluated(self, average: Classifier) -> Classifier:
        """Returns the network that is evaluated and saved: the student's average, or one of (or with) the method's
        own."""
        return average


def forward_together(network: nn.Module, *parts: Tensor) -> tuple[Tensor, ...]:
    """Runs one forward pass over all parts, so that batch norm sees them together; returns logits in fp32 by part."""
    return torch.split(network(torch.cat(parts)).float(), [len(part) for part in parts])


def adjusted(logits: Tensor, batch: Batch) -> Tensor:
    """Returns the labelled images' logits for their loss: with logit adjustment (2007.07314) if it is set."""
    return logits if batch.label_offsets is None else logits + batch.label_offsets


def labeled_cross_entropy(logits: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Returns the loss of the labelled images, weighted and adjusted as the settings say."""
    return weighted_cross_entropy(adjusted(logits, batch), batch.labels, batch.label_weights, smoothing)


def supervised_alone(student: nn.Module, batch: Batch) -> Losses:
    """Returns the losses of supervised training; a method at weight 0 must give the same bits."""
    supervised = labeled_cross_entropy(student(batch.labeled[0]).float(), batch)
    return Losses(supervised, {"supervised": supervised.detach()})


def combine(
    supervised: Tensor,
    unsupervised: Tensor,
    weight: float | Tensor,
    logits: Sequence[Tensor],
    logs: Mapping[str, Tensor],
) -> Losses:
    """Returns supervised + weight · unsupervised, with the numbers that every method logs.

    `logits` are the student's outputs behind both losses. Every gradient passes through them, so the share of
    unlabelled images in the gradient is measured there, without a backward pass.
    """
    weighted = weight * unsupervised
    logs = {"supervised": supervised.detach(), "unsupervised": unsupervised.detach(), **logs}
    if weighted.requires_grad:
        logs["gradient_share"] = gradient_share(supervised, weighted, logits)
    return Losses(supervised + weighted, logs)


def gradient_share(supervised: Tensor, unsupervised: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """Returns ‖∇unsupervised‖ / (‖∇supervised‖ + ‖∇unsupervised‖), gradients with respect to the logits."""
    norms = [
        torch.stack([grad.norm() for grad in grads if grad is not None]).norm()
        for loss in (supervised, unsupervised)
        for grads in [torch.autograd.grad(loss, list(logits), retain_graph=True, allow_unused=True)]
    ]
    return norms[1] / (norms[0] + norms[1]).clamp_min(torch.finfo(norms[0].dtype).tiny)


def twin(student: Classifier, weights: Literal["scratch", "student"], another: Callable[[], Classifier]) -> Classifier:
    """Returns a trainable copy with the student's weights, or with those of another, newly built network.

    In both cases it is a copy, so that its device and memory layout are the student's.
    """
    network = copy.deepcopy(student)
    if weights == "scratch":
        network.load_state_dict(another().state_dict())
    return network


class MovingTeacher(nn.Module):
    """A moving-average copy in train mode, without gradient. Its batch-norm statistics come from its own passes."""

    updates: Tensor

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False).train()
        self.register_buffer("updates", torch.zeros((), device=next(student.parameters()).device))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Returns the teacher's logits, with its noise; evaluation may have left it in eval mode."""
        return self.network.train()(images)

    @torch.no_grad()
    def follow(self, student: Classifier, decay: float, warmup: bool) -> None:
        """Sets teacher ← d · teacher + (1 - d) · student, d = min(1 - 1/(t + 1), decay) in the warm-up, on the device.

        Ranks share one teacher, so its statistics are made equal too.
        """
        self.updates += 1
        most = torch.full_like(self.updates, decay)
        kept = torch.minimum(1 - 1 / (self.updates + 1), most) if warmup else most
        pairs = zip(self.network.parameters(), student.parameters(), strict=True)
        moving = [(one, other) for one, other in pairs if other.requires_grad]  # frozen weights are the same in both
        mine: list[Tensor] = [one for one, _ in moving]
        theirs: list[Tensor] = [other for _, other in moving]
        torch._foreach_mul_(mine, kept)
        torch._foreach_add_(mine, list(torch._foreach_mul(theirs, 1 - kept)))
        average_buffers(self.network)
