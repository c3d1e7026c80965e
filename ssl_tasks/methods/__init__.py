"""Contains the semi-supervised methods, one per file. Importing this package does not import torch."""

from typing import TYPE_CHECKING

from selftrain.ssl_tasks.settings.methods import MethodSettings

if TYPE_CHECKING:
    from selftrain.ssl_tasks.methods.base import Method, Problem

LABELS_ONLY = {"supervised", "noisy_student", "distillation", "linear"}
"""Methods that never read the unlabelled pool: new unlabelled images do not make them train again."""


def method_class(name: str) -> "type[Method]":
    """Returns the class behind a method's name."""
    from selftrain.ssl_tasks.methods.table import METHODS

    return METHODS[name]


def build_method(settings: MethodSettings, problem: "Problem") -> "Method":
    """Returns the method that the settings name, ready to train."""
    return method_class(settings.name)(settings, problem)
