"""A comparison as a Prefect flow: one flow run, whose child flow runs are the comparison's cells."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import flow, tags
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.results import get_result_store
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from selftrain.flows.prefect.flow import first_of_ours
from selftrain.flows.rounds.comparison_record import as_markdown, shown_rows
from selftrain.flows.rounds.reaper import process_tag
from selftrain.ssl_tasks.report.page import Comparison

log = logging.getLogger("selftrain")


def compare_as_flow(answer: Callable[[], Comparison], title: str, asked: Mapping[str, str]) -> Comparison:
    """`answer` within a flow run; every run that it starts is a child of it. Prefect shows and never decides."""
    found: list[Comparison] = []

    @flow(name="compare", flow_run_name=title, persist_result=False)
    def compare(asked: dict[str, str]) -> State[Any]:
        found.append(answer())
        _publish(found[0])
        return Completed(message=f"{sum(map(len, found[0].points))} runs, {len(found[0].points)} rows")

    try:
        with tags(process_tag()):
            state: Any = compare(dict(asked), return_state=True)
        state.result()
    except Exception as error:  # noqa: BLE001 - whatever Prefect raises where its server is away
        if not found:
            raise first_of_ours(error) from None
        log.warning(
            "Prefect could not be told how the comparison ended (%s); its result is complete", type(error).__name__
        )
    return found[0]


def _publish(comparison: Comparison) -> None:
    """The table, on the flow run's page. A comparison that succeeded does not fail for it."""
    key = re.sub(r"[^a-z0-9]+", "-", comparison.title.lower()).strip("-")
    try:
        create_markdown_artifact(as_markdown(shown_rows(comparison)), key=f"{key}-comparison")
    except Exception as error:  # noqa: BLE001 - it is on file and in MLflow too
        log.warning("the table of the comparison could not be sent to Prefect: %s", error)


@contextmanager
def child_of(number: str) -> Iterator[None]:
    """On another machine: flow runs that start in this block are children of that flow run."""
    with get_client(sync_client=True) as client:
        context = FlowRunContext(
            flow_run=client.read_flow_run(UUID(number)),
            client=client,
            task_runner=ThreadPoolTaskRunner[Any](),
            result_store=get_result_store(),
            persist_result=False,
            detached=True,
        )
        with context:
            yield
