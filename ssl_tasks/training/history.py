"""Records the history of a training as means over some steps, and diagnoses it.

Recording does not wait for the device. The diagnosis warns if nothing is learned from the unlabelled images, and names
the settings to change.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from selftrain.ssl_tasks.execution.distributed import sum_over_ranks
from selftrain.ssl_tasks.settings.section import Section

NAN = float("nan")


class Meter:
    """Running sums of logged tensors; only `read` waits for the device, once for all of them. NaNs are ignored."""

    def __init__(self, device: torch.device) -> None:
        self.names: tuple[str, ...] = ()
        self.sums = torch.zeros(0, device=device)
        self.counts = torch.zeros(0, device=device)
        self.first_bad = torch.full((), math.inf, device=device)

    def add(self, logs: Mapping[str, Tensor]) -> None:
        """Adds the logs of one step or micro-batch."""
        if missing := tuple(name for name in logs if name not in self.names):
            self.names += missing
            more = self.sums.new_zeros(len(missing))
            self.sums, self.counts = torch.cat([self.sums, more]), torch.cat([self.counts, more])
        absent = self.sums.new_full((), NAN)
        values = torch.stack([logs.get(name, absent).detach().float() for name in self.names])
        self.sums += values.nan_to_num(0.0, math.inf, -math.inf)
        self.counts += ~values.isnan()

    def watch(self, loss: Tensor, step: int) -> None:
        """Notes the step if it is the first whose loss is not finite."""
        self.first_bad = torch.where(loss.detach().isfinite(), self.first_bad, self.first_bad.clamp(max=step))

    def bad_step(self) -> int | None:
        """Returns the first step whose loss was not finite, if any; waits for the device."""
        first = self.first_bad.item()
        return None if first == math.inf else int(first)

    def read(self) -> dict[str, float]:
        """Returns the means so far, over all ranks; a mean of no values is NaN."""
        both = sum_over_ranks(torch.stack([self.sums, self.counts])).tolist()
        return {name: total / count if count else NAN for name, total, count in zip(self.names, *both, strict=True)}

    def clear(self) -> None:
        """Resets all sums."""
        self.sums.zero_()
        self.counts.zero_()


class History:
    """A table with one row per step. A column appears when it is first written; missing values are NaN."""

    def __init__(self) -> None:
        self.columns: dict[str, list[float]] = {"step": []}

    def __len__(self) -> int:
        return len(self.columns["step"])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values into the row of `step`, which is the last row or a new one."""
        if not len(self) or self.columns["step"][-1] != step:
            for name, column in self.columns.items():
                column.append(step if name == "step" else NAN)
        for name, value in values.items():
            self.columns.setdefault(name, [NAN] * len(self))[-1] = value

    def column(self, name: str) -> list[float]:
        """Returns a column by name; all NaN if it was never written."""
        return self.columns.get(name, [NAN] * len(self))

    def to_tensors(self) -> dict[str, Tensor]:
        """Returns the exact columns for a checkpoint."""
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in self.columns.items()}

    def from_tensors(self, columns: Mapping[str, Tensor]) -> None:
        """Restores a history from the result of `to_tensors`; columns are then in alphabetical order."""
        self.columns = {name: columns[name].tolist() for name in ["step", *sorted(set(columns) - {"step"})]}

    def write(self, path: Path) -> None:
        """Writes the history as Parquet; equal histories give equal bytes."""
        import pandas as pd  # imported here, because it is slow to import and training does not need it

        names = ["step", *sorted(set(self.columns) - {"step"})]
        table = pd.DataFrame({name: self.columns[name] for name in names}).astype({"step": "int64"})
        table.to_parquet(path, index=False)


EARLY = 0.2  # share of the run after which a method should use some unlabelled images
COLLAPSE = 0.9  # share of pseudo-labels that one class may take
ENOUGH = 10  # images that must count in a step before their classes are compared


def diagnose(
    history: History, method: Section, steps: int, unlabeled_batch: int, largest_prior: float = 0.0
) -> dict[str, str]:
    """Returns the warnings about a history, by kind; none during the first fifth of the run."""
    if not len(history) or history.column("step")[-1] < EARLY * steps:
        return {}
    findings = {
        "nothing_selected": _nothing_selected(history, method, steps),
        "collapsed": _collapsed(history, method, unlabeled_batch, largest_prior),
    }
    return {kind: finding for kind, finding in findings.items() if finding}


def _nothing_selected(history: History, method: Section, steps: int) -> str | None:
    rows = zip(history.column("step"), history.column("mask"), strict=True)
    early = [mask for step, mask in rows if step <= EARLY * steps and not math.isnan(mask)]
    if not early or max(early) > 0:
        return None
    threshold = getattr(method, "threshold", None)
    lower = f"lower method.threshold (now {threshold:g}), " if isinstance(threshold, float) and threshold else ""
    return (
        f"no unlabelled image counted in the first {EARLY:.0%} of the run (mask = 0): the model was "
        f"trained on labelled images only. To change that, {lower}raise train.steps (now {steps}) or "
        "train.learning_rate, or give more labels."
    )


def _collapsed(history: History, method: Section, unlabeled_batch: int, largest_prior: float) -> str | None:
    rows = zip(history.column("pseudo_largest_class"), history.column("mask"), strict=True)
    shares = [
        share
        for share, mask in rows
        if share == share and (1.0 if math.isnan(mask) else mask) * unlabeled_batch >= ENOUGH
    ]
    recent = shares[-max(1, len(shares) // 10) :]
    if not recent or sum(recent) / len(recent) <= max(COLLAPSE, largest_prior + (1 - largest_prior) / 2):
        return None
    known = type(method).model_fields
    align = "set method.distribution_alignment, " if "distribution_alignment" in known else ""
    raise_threshold = "raise method.threshold, " if "threshold" in known else ""
    return (
        f"one class takes {sum(recent) / len(recent):.0%} of the pseudo-labels: the model confirms its own "
        f"errors. To change that, {align}{raise_threshold}lower method.weight or train.learning_rate, or set "
        "train.class_balanced where the labels are imbalanced."
    )
