"""torchvision is imported with its compiled operators where they load, and without them where they do not."""

import subprocess
import sys

WITHOUT_OPERATORS = """
import torch

def refuse(path):  # as where torch is a CPU build and torchvision a CUDA build: its library does not load
    raise OSError("libcudart.so.13: cannot open shared object file")

torch.ops.load_library = refuse
try:
    import torchvision
except RuntimeError as error:
    print(error)
from selftrain.models.torchvision_import import torchvision
from selftrain.models.classifier import Classifier
print(torchvision.models.resnet18(weights=None).eval()(torch.zeros(1, 3, 32, 32)).shape)
print(torchvision.ops.stochastic_depth(torch.ones(2, 3), 0.0, "row").sum())
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_torchvision_works_where_its_operators_do_not_load() -> None:
    lines = run(WITHOUT_OPERATORS).splitlines()
    assert lines[0] == "operator torchvision::nms does not exist"  # what a plain import says
    assert lines[1:] == ["torch.Size([1, 1000])", "tensor(6.)"]


def test_torchvision_is_the_plain_import_where_that_works() -> None:
    code = "import torchvision as plain\nfrom selftrain.models.torchvision_import import *\n"
    assert run(code + "print(plain is torchvision, len(declared))").split() == ["True", "0"]
