"""Means without waiting, and the table that they become."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from selftrain.ssl_tasks.training.history import History, Meter


def test_meter_is_the_mean_of_what_was_added() -> None:
    meter = Meter(torch.device("cpu"))
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(value)})
    assert meter.read() == {"loss": 3.0}


def test_numbers_that_are_undefined_or_absent_do_not_count() -> None:
    meter = Meter(torch.device("cpu"))
    meter.add({"loss": torch.tensor(1.0), "accuracy": torch.tensor(math.nan)})
    meter.add({"loss": torch.tensor(3.0), "accuracy": torch.tensor(0.5), "late": torch.tensor(4.0)})
    meter.add({"loss": torch.tensor(5.0)})
    assert meter.read() == {"loss": 3.0, "accuracy": 0.5, "late": 4.0}


def test_cleared_meter_knows_no_numbers() -> None:
    meter = Meter(torch.device("cpu"))
    meter.add({"loss": torch.tensor(1.0)})
    meter.clear()
    assert math.isnan(meter.read()["loss"])


def test_meter_remembers_the_first_bad_step() -> None:
    meter = Meter(torch.device("cpu"))
    for step, loss in enumerate([1.0, math.inf, math.nan, 2.0]):
        meter.watch(torch.tensor(loss), step)
    assert meter.bad_step() == 1


def test_row_of_one_step_is_written_in_parts() -> None:
    history = History()
    history.add(10, {"loss": 1.0})
    history.add(20, {"loss": 0.5})
    history.add(20, {"validation_accuracy": 0.9})
    assert history.column("step") == [10, 20]
    assert history.column("validation_accuracy") == [pytest.approx(math.nan, nan_ok=True), 0.9]


def test_history_survives_a_checkpoint_and_is_the_same_bytes(tmp_path: Path) -> None:
    history, again = History(), History()
    history.add(10, {"loss": 1 / 3, "a": math.nan})
    history.add(20, {"loss": 1e-300, "b": 2.0})
    again.from_tensors(history.to_tensors())
    history.write(tmp_path / "one.parquet")
    again.write(tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    table = pd.read_parquet(tmp_path / "one.parquet")
    assert list(table.columns) == ["step", "a", "b", "loss"]
    assert table["loss"].tolist() == [1 / 3, 1e-300]
