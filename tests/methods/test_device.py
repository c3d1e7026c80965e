"""No step waits for its device.

On torch's meta device a tensor has no values: whatever would read one back (`.item()`, `if tensor:`, a boolean index)
raises, so that a hidden synchronisation fails here, without an accelerator.
"""

import contextlib

import pytest
import torch

from tests.methods.test_contract import eager
from tests.methods.trial import METHOD_NAMES, Trial, batch_of


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_a_step_reads_no_value_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta device
    trial = Trial(eager(name))
    student, method = trial.student.to("meta"), trial.method.to("meta")
    batch = batch_of(method.views).map(lambda tensor: tensor.to("meta"))
    if (own_step := getattr(method, "train_step", None)) is not None:
        parameters = [one for one in [*student.parameters(), *method.parameters()] if one.requires_grad]
        losses = own_step(student, torch.optim.SGD(parameters, lr=0.1, momentum=0.9), batch, 0.7)
    else:
        losses = method.loss(student, batch, 0.7)
        losses.total.backward()
    method.after_step(student)
    assert losses.total.is_meta
    assert all(value.is_meta for value in losses.logs.values())


def test_a_value_that_is_read_back_would_be_noticed() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros((), device="meta").item()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        bool(torch.zeros(3, device="meta").any())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        torch.zeros(3, device="meta")[torch.zeros(3, device="meta") > 0]
