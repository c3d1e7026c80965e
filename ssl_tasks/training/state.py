"""Holds the state of a training (weights, optimizer, moving average), and converts it to and from named tensors.

No random state is stored: every step seeds torch from (seed, step, rank), and the batches and the learning rate depend
only on the step. The moving average of the weights is evaluated, and is the teacher of Mean Teacher.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.methods.base import Method
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.training.history import History, Meter

Network = TypeVar("Network", bound=nn.Module)


def warmed_decay(decay: float, updates: int, warmup: bool) -> float:
    """Returns min(1 - 1/(t + 1), d) at update t = 1, 2, …: first a plain mean of the weights, then a moving one."""
    return min(1 - 1 / (updates + 1), decay) if warmup else decay


def frozen_copy(network: Network) -> Network:
    """Returns a copy of the network without gradients, in evaluation mode."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def move_average(
    average: nn.Module, network: nn.Module, decay: float, buffers: Literal["copy", "average"] = "copy"
) -> None:
    """Sets average ← decay · average + (1 - decay) · network; buffers (running statistics) are copied or averaged."""
    pairs: list[tuple[Tensor, Tensor]] = [
        (mine, theirs)
        for mine, theirs in zip(average.parameters(), network.parameters(), strict=True)
        if theirs.requires_grad  # frozen weights are the same in both
    ]
    others = list(zip(average.buffers(), network.buffers(), strict=True))
    if buffers == "average":
        pairs += [pair for pair in others if pair[0].is_floating_point()]
        others = [pair for pair in others if not pair[0].is_floating_point()]
    _lerp(pairs, 1 - decay)
    if others:
        torch._foreach_copy_([mine for mine, _ in others], [theirs for _, theirs in others])


def _lerp(pairs: list[tuple[Tensor, Tensor]], weight: float) -> None:
    if pairs:
        torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], weight)


def learning_rate(train: TrainSettings, step: int) -> float:
    """Returns the rate at step 0 … steps - 1: a linear rise over the warm-up, then the schedule over the rest."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    if train.schedule == "constant":
        return train.learning_rate
    if train.schedule == "exponential":
        return train.learning_rate * train.final_rate**progress
    if train.schedule == "cosine":
        return train.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    return train.learning_rate * math.cos(7 * math.pi * progress / 16)  # FixMatch's schedule, which ends at 0.195


def parameter_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, factors: Mapping[nn.Parameter, float] | None = None
) -> list[dict[str, Any]]:
    """Groups parameters for the optimizer: kernels (two dimensions or more) get weight decay; biases and norms do not.

    `factors` multiply the learning rate (default 1); each factor has groups of its own.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            factor = (factors or {}).get(parameter, 1.0)
            groups.setdefault((factor, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay if kernel else 0.0, "factor": factor}
        for (factor, kernel), members in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def build_optimizer(
    train: TrainSettings, parameters: Iterable[nn.Parameter], factors: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """Returns SGD with L2 in the gradient, as in FixMatch, or AdamW with decoupled decay; both fused."""
    groups = parameter_groups(parameters, train.weight_decay, factors)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.learning_rate, fused=True)
    nesterov = train.nesterov and train.momentum > 0
    return torch.optim.SGD(groups, lr=train.learning_rate, momentum=train.momentum, nesterov=nesterov, fused=True)


def momentum(train: TrainSettings, step: int) -> float:
    """Returns the momentum at a step: it rises linearly from .5 over the warm-up (Hinton 2012, arXiv 1207.0580)."""
    share = min(1.0, step / train.momentum_warmup_steps) if train.momentum_warmup_steps else 1.0
    return share * train.momentum + (1 - share) * 0.5


def set_rates(optimizer: torch.optim.Optimizer, train: TrainSettings, step: int) -> None:
    """Sets the step's learning rate, times each group's factor, and the step's momentum if it rises."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(train, step) * group["factor"]
        if train.momentum_warmup_steps:
            group["momentum"] = group["dampening"] = momentum(train, step)


@dataclass(frozen=True)
class Snapshot:
    """A copy of a run at one step: tensors in main memory, and small JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass
class Best:
    """The best evaluation on validation so far, and its weights."""

    step: int
    accuracy: float
    loss: float
    weights: dict[str, Tensor]


class RunState:
    """The state that changes while a network is trained."""

    def __init__(
        self, student: Classifier, average: Classifier, method: Method, optimizer: torch.optim.Optimizer
    ) -> None:
        self.student, self.average, self.method, self.optimizer = student, average, method, optimizer
        self.step = 0
        self.stale = 0  # evaluations since the best
        self.best: Best | None = None
        self.warned: set[str] = set()  # kinds of warnings that this process has logged
        self.history = History()
        self.meter = Meter(next(student.parameters()).device)

    def snapshot(self) -> Snapshot:
        """Returns a copy of the whole state, with contiguous tensors."""
        tensors = {
            **prefixed("student", self.student.state_dict()),
            **prefixed("method", self.method.state_dict()),
            **prefixed("optimizer", self._optimizer_tensors()),
            **prefixed("history", self.history.to_tensors()),
            "meter/sums": self.meter.sums,
            "meter/counts": self.meter.counts,
        }
        if self.average is not self.student:
            tensors |= prefixed("average", self.average.state_dict())
        values: dict[str, Any] = {"step": self.step, "stale": self.stale, "meter": list(self.meter.names)}
        if self.best is not None:
            tensors |= prefixed("best", self.best.weights)
            values["best"] = {"step": self.best.step, "accuracy": self.best.accuracy, "loss": self.best.loss}
        return Snapshot({name: plain_copy(tensor) for name, tensor in tensors.items()}, values)

    def restore(self, snapshot: Snapshot) -> None:
        """Restores the state from a snapshot."""
        tensors, values = snapshot.tensors, snapshot.values
        try:
            self.student.load_state_dict(unprefixed("student", tensors))
            if self.average is not self.student:
                self.average.load_state_dict(unprefixed("average", tensors))
            self.method.load_state_dict(unprefixed("method", tensors))
        except RuntimeError as error:
            raise SelftrainError(
                f"the checkpoint of step {values['step']} does not fit this version of the code: {error}"
            ) from error
        self._load_optimizer(unprefixed("optimizer", tensors))
        self.history.from_tensors(unprefixed("history", tensors))
        device = self.meter.sums.device
        self.meter.names = tuple(values["meter"])
        self.meter.sums, self.meter.counts = (tensors[f"meter/{name}"].to(device) for name in ("sums", "counts"))
        self.step, self.stale = values["step"], values["stale"]
        if "best" in values:
            weights = {name: tensor.to(device) for name, tensor in unprefixed("best", tensors).items()}
            self.best = Best(**values["best"], weights=weights)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Returns all parameters that are optimised: the student's and the method's own."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"{number}/{name}": value
            for number, parameter in enumerate(self.parameters)
            for name, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            number, _, name = path.partition("/")
            state.setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        # Moments must have the memory layout of their parameters: the fused optimizers require it.
        for parameter, entries in self.optimizer.state.items():
            for name, value in entries.items():
                if value.shape == parameter.shape:
                    entries[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with `prefix/` before their names."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with `prefix/`, without it."""
    return {
        name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")
    }


def plain_copy(tensor: Tensor) -> Tensor:
    """Returns a contiguous copy in main memory that shares no memory with the tensor."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
