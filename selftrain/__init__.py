"""Trains image classifiers from few labelled and many unlabelled images, as a pipeline (semi-supervised learning).

Every verb of the command line is a function here, with the same names and defaults:

    import selftrain

    finished = selftrain.run("quickstart", ["seed=1"])
    selftrain.labels(finished.id, selected=True)  # a pandas DataFrame
    selftrain.sql("last", "select label, count(*) from selection group by label")

Importing the package is cheap: a function's modules are imported when it is first looked up.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selftrain.flows.actions.compare import compare_methods, compare_runs
    from selftrain.flows.actions.first_recipe import write_recipe as init
    from selftrain.flows.actions.housekeeping import clean
    from selftrain.flows.actions.housekeeping import examine as doctor
    from selftrain.flows.actions.looking import (
        apply_corrections,
        config,
        data,
        differences,
        explain,
        labels,
        lineage,
        report,
        review,
        sql,
        sync,
    )
    from selftrain.flows.actions.measuring import check_labels, evaluate
    from selftrain.flows.actions.models import export, fetch_weights, find_weights, predict, weights
    from selftrain.flows.actions.verbs import approve, plan, progress, rerun, run, runs, stages, status, train

_ACTIONS = "selftrain.flows.actions"
_PLACES = {  # where each function is, and what it is called there if it has another name
    "apply_corrections": "looking",
    "approve": "verbs",
    "check_labels": "measuring",
    "clean": "housekeeping",
    "compare_methods": "compare",
    "compare_runs": "compare",
    "config": "looking",
    "data": "looking",
    "differences": "looking",
    "doctor": "housekeeping:examine",
    "evaluate": "measuring",
    "explain": "looking",
    "export": "models",
    "fetch_weights": "models",
    "find_weights": "models",
    "init": "first_recipe:write_recipe",
    "labels": "looking",
    "lineage": "looking",
    "plan": "verbs",
    "predict": "models",
    "progress": "verbs",
    "report": "looking",
    "rerun": "verbs",
    "review": "looking",
    "run": "verbs",
    "runs": "verbs",
    "sql": "looking",
    "stages": "verbs",
    "status": "verbs",
    "sync": "looking",
    "train": "verbs",
    "weights": "models",
}

__all__ = [
    "__version__",
    "apply_corrections",
    "approve",
    "check_labels",
    "clean",
    "compare_methods",
    "compare_runs",
    "config",
    "data",
    "differences",
    "doctor",
    "evaluate",
    "explain",
    "export",
    "fetch_weights",
    "find_weights",
    "init",
    "labels",
    "lineage",
    "plan",
    "predict",
    "progress",
    "report",
    "rerun",
    "review",
    "run",
    "runs",
    "sql",
    "stages",
    "status",
    "sync",
    "train",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("selftrain")
    if name not in _PLACES:
        raise AttributeError(f"module 'selftrain' has no attribute '{name}'")
    module, _, called = _PLACES[name].partition(":")
    return getattr(import_module(f"{_ACTIONS}.{module}"), called or name)


def __dir__() -> list[str]:
    return __all__
