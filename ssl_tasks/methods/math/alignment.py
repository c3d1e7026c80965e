"""Distribution alignment (ReMixMatch, arXiv 1911.09785): guesses whose running mean is pulled to a known one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selftrain.ssl_tasks.execution.distributed import mean_over_ranks
from selftrain.ssl_tasks.methods.math.functional import align_distribution

BATCHES = 128


class RunningMean(nn.Module):
    """The mean of the unaligned guesses of the last batches, and the distribution that it should have."""

    target: Tensor
    recent: Tensor
    count: Tensor

    def __init__(self, target: Sequence[float], batches: int = BATCHES) -> None:
        super().__init__()
        self.register_buffer("target", torch.tensor(target))
        self.register_buffer("recent", torch.zeros(batches, len(target)))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def align(self, probs: Tensor) -> Tensor:
        """The guesses aligned by the mean of the batches up to this one, which is taken in first."""
        slot = (self.count % len(self.recent)).reshape(1)
        self.recent.index_copy_(0, slot, mean_over_ranks(probs.mean(dim=0))[None])
        self.count += 1
        mean = self.recent.sum(dim=0) / self.count.clamp_max(len(self.recent))
        return align_distribution(probs, self.target, mean)
