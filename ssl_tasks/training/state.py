"""The run state: all that a run is at a step, to and from named tensors. There is no random state to keep: every step
seeds torch from (seed, step, rank), and the batches are a function of the step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.methods.base import Method
from selftrain.ssl_tasks.training.history import History, Meter


@dataclass(frozen=True)
class Snapshot:
    """A run at a step, apart from the run: tensors in main memory, and small JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass
class Best:
    """The best evaluation on validation so far, and the weights that made it."""

    step: int
    accuracy: float
    loss: float
    weights: dict[str, Tensor]


class RunState:
    """What changes while a network is trained."""

    def __init__(
        self, student: Classifier, average: Classifier, method: Method, optimizer: torch.optim.Optimizer
    ) -> None:
        self.student, self.average, self.method, self.optimizer = student, average, method, optimizer
        self.step = 0
        self.stale = 0  # evaluations since the best
        self.best: Best | None = None
        self.warned: set[str] = set()  # kinds of warnings that this process has spoken
        self.history = History()
        self.meter = Meter(next(student.parameters()).device)

    def snapshot(self) -> Snapshot:
        """A copy of everything, in one plain memory layout."""
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
        """Becomes the run that the snapshot was taken of."""
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
        """All that is optimised: the student's, and the method's own."""
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
        # As before, moments lie in memory as their parameters do: the fused optimizers want that.
        for parameter, entries in self.optimizer.state.items():
            for name, value in entries.items():
                if value.shape == parameter.shape:
                    entries[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix/`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that lie under `prefix/`."""
    return {
        name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")
    }


def plain_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy in main memory that shares nothing."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
