"""Devices and number formats by name."""

import os
import subprocess
import sys

import pytest
import torch

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.devices import (
    autocast,
    computed_by,
    has_native_bf16,
    prepare_backends,
    resolve_device,
    resolve_precision,
)
from selftrain.ssl_tasks.methods.label_propagation import nearest_neighbors
from selftrain.ssl_tasks.methods.math import exact_products
from selftrain.ssl_tasks.methods.simclr import nt_xent

CPU = torch.device("cpu")


def test_formats_are_what_was_asked_for() -> None:
    assert resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16


def test_auto_is_bf16_only_where_the_hardware_has_it() -> None:
    assert resolve_precision("auto", CPU) == (torch.bfloat16 if has_native_bf16(CPU) else torch.float32)


def test_auto_is_fp32_where_the_environment_forbids_the_cpus_bf16() -> None:
    """oneDNN reads ONEDNN_MAX_CPU_ISA once, at its start: so in a process of its own."""
    script = """import torch
from selftrain.ssl_tasks.execution.devices import computed_by, resolve_precision
cpu = torch.device("cpu")
print(computed_by(cpu, resolve_precision("auto", cpu)))"""
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **limits}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str({"device": "cpu", "precision": "float32", "instruction_set": "AVX2"})


def test_what_computed_a_result_names_each_format_once() -> None:
    found = computed_by(CPU, torch.float32, torch.bfloat16, torch.float32)
    assert found["precision"] == "bfloat16, float32"
    assert found["instruction_set"] == torch.backends.cpu.get_cpu_capability()


def test_auto_device_is_the_accelerator_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("name", "message"), [("gpu", "'gpu' is unknown"), ("cuda:99", "this machine has")])
def test_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fp8' is unknown"):
        resolve_precision("fp8", CPU)


def test_exact_products_are_fp32_and_leave_things_as_they_were() -> None:
    one = torch.ones(2, 2)
    prepare_backends("auto", None)
    with autocast(CPU, torch.bfloat16):
        with exact_products(CPU):
            assert (one @ one).dtype == torch.float32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        assert (one @ one).dtype == torch.bfloat16


def test_similarities_of_features_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    found, original = [], torch.Tensor.__matmul__

    def noting(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = original(one, other)
        found.append((product.dtype, torch.backends.cuda.matmul.allow_tf32))
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", noting)
    prepare_backends("auto", None)
    with autocast(CPU, torch.bfloat16):
        nearest_neighbors(torch.randn(4, 3), 1)
        nt_xent(torch.randn(4, 3), torch.randn(4, 3), 0.5)
    assert found == [(torch.float32, False)] * 2


def test_products_are_in_the_format_and_fp32_is_left_alone() -> None:
    one = torch.ones(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(CPU, dtype):
            assert (one @ one).dtype == dtype
