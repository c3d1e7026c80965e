"""The teacher of Mean Teacher and ICT: a moving average of the student's parameters that makes its own statistics."""

import copy

import torch
from torch import Tensor, nn

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.execution.distributed import average_buffers


class MovingTeacher(nn.Module):
    """A copy in train mode that no gradient reaches. Its batch norm sees its own passes: nothing is copied to it."""

    updates: Tensor

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False).train()
        self.register_buffer("updates", torch.zeros((), device=next(student.parameters()).device))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The teacher's logits, with its noise; evaluation may have left it in eval mode."""
        return self.network.train()(images)

    @torch.no_grad()
    def follow(self, student: Classifier, decay: float, warmup: bool) -> None:
        """teacher ← d · teacher + (1 - d) · student, d = min(1 - 1/(t + 1), decay) in the warm-up, on the device.

        Ranks share one teacher, so its statistics are made alike too.
        """
        self.updates += 1
        most = torch.full_like(self.updates, decay)
        kept = torch.minimum(1 - 1 / (self.updates + 1), most) if warmup else most
        mine: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(student.parameters())
        torch._foreach_mul_(mine, kept)
        torch._foreach_add_(mine, list(torch._foreach_mul(theirs, 1 - kept)))
        average_buffers(self.network)
