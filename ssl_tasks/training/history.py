"""What a run says of itself: means over some steps, gathered on the device without waiting for it, and their table."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from selftrain.ssl_tasks.execution.distributed import sum_over_ranks

NAN = float("nan")


class Meter:
    """Running sums of logged tensors; `read` waits for the device once, for all of them. NaNs do not count."""

    def __init__(self, device: torch.device) -> None:
        self.names: tuple[str, ...] = ()
        self.sums = torch.zeros(0, device=device)
        self.counts = torch.zeros(0, device=device)
        self.first_bad = torch.full((), math.inf, device=device)

    def add(self, logs: Mapping[str, Tensor]) -> None:
        """Adds one step's (or micro-batch's) logs."""
        if missing := tuple(name for name in logs if name not in self.names):
            self.names += missing
            more = self.sums.new_zeros(len(missing))
            self.sums, self.counts = torch.cat([self.sums, more]), torch.cat([self.counts, more])
        absent = self.sums.new_full((), NAN)
        values = torch.stack([logs.get(name, absent).detach().float() for name in self.names])
        self.sums += values.nan_to_num(0.0, math.inf, -math.inf)
        self.counts += ~values.isnan()

    def watch(self, loss: Tensor, step: int) -> None:
        """Remembers the first step whose loss is not finite."""
        self.first_bad = torch.where(loss.detach().isfinite(), self.first_bad, self.first_bad.clamp(max=step))

    def bad_step(self) -> int | None:
        """The first step whose loss was not finite, if there is one; waits for the device."""
        first = self.first_bad.item()
        return None if first == math.inf else int(first)

    def read(self) -> dict[str, float]:
        """The means so far, over all ranks; NaN where nothing counted."""
        both = sum_over_ranks(torch.stack([self.sums, self.counts])).tolist()
        return {name: total / count if count else NAN for name, total, count in zip(self.names, *both, strict=True)}

    def clear(self) -> None:
        """Starts anew."""
        self.sums.zero_()
        self.counts.zero_()


class History:
    """Rows by step; a column appears when it is first written and is NaN elsewhere."""

    def __init__(self) -> None:
        self.columns: dict[str, list[float]] = {"step": []}

    def __len__(self) -> int:
        return len(self.columns["step"])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes into the row of `step`, which is the last one or a new one."""
        if not len(self) or self.columns["step"][-1] != step:
            for name, column in self.columns.items():
                column.append(step if name == "step" else NAN)
        for name, value in values.items():
            self.columns.setdefault(name, [NAN] * len(self))[-1] = value

    def column(self, name: str) -> list[float]:
        """A column by name; all NaN where nobody wrote it."""
        return self.columns.get(name, [NAN] * len(self))

    def to_tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: exact."""
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in self.columns.items()}

    def from_tensors(self, columns: Mapping[str, Tensor]) -> None:
        """What `to_tensors` gave; the order of columns is the alphabet's from here on."""
        self.columns = {name: columns[name].tolist() for name in ["step", *sorted(set(columns) - {"step"})]}

    def write(self, path: Path) -> None:
        """As Parquet; the same history is the same bytes."""
        import pandas as pd  # here, for it takes long to import and training does not need it

        names = ["step", *sorted(set(self.columns) - {"step"})]
        table = pd.DataFrame({name: self.columns[name] for name in names}).astype({"step": "int64"})
        table.to_parquet(path, index=False)
