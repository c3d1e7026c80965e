"""Names of flow runs: the name that a person gave, else the name of the recipe."""

import functools
from typing import Any

from coolname.data import config
from prefect.context import FlowRunContext

WORDS: dict[str, Any] = dict(config)  # coolname has no types


def flow_run_name() -> str:
    """Prefect asks for it within the flow run's context; it replaces the name that the run has been made with."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    assert context.parameters is not None
    given = context.flow_run.name
    return str(context.parameters["config"].name) if is_generated(given) else given


def is_generated(name: str) -> bool:
    """Whether Prefect made it up, as it does where a name was not given: an adjective and an animal of its lists."""
    adjective, dash, animal = name.partition("-")
    return not name or (bool(dash) and adjective in _words("adj_any") and animal in _words("subj"))


@functools.cache
def _words(kind: str) -> frozenset[str]:
    rule = WORDS[kind]
    if rule["type"] == "words":
        return frozenset(rule["words"])
    return frozenset().union(*(_words(part) for part in rule["lists"]))
