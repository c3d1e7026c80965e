"""Imports torchvision so that it also works without its compiled operators; no other module imports it.

With a CPU build of torch and a CUDA build of torchvision, the operators' library does not load, and importing
torchvision fails with "operator torchvision::nms does not exist". Declaring the operators makes the Python parts work.
"""

import importlib
import sys
from types import ModuleType

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
declared: list[torch.library.Library] = []  # declarations end when the library object is deleted


def import_torchvision() -> ModuleType:
    """Returns torchvision; declares its missing operators if the import fails without them."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name, schema in SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                library.define(schema)
        declared.append(library)
        return importlib.import_module("torchvision")


torchvision = import_torchvision()
