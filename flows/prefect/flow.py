"""Defines the pipeline and a comparison of runs as Prefect flows, with their names and pages."""

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any
from uuid import UUID

from coolname.data import config as coolname
from prefect import flow, tags
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TagsContext
from prefect.events import emit_event
from prefect.results import get_result_store
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from selftrain.flows.environment import set_environment, workspace_folder
from selftrain.flows.prefect.server import CHAMPION, NOTHING_NEW, RESTARTED, check_reachable
from selftrain.flows.prefect.tasks import PrefectOrchestrator, process_tag
from selftrain.flows.rounds.pipeline import run_pipeline
from selftrain.flows.tables import share
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.execution.startup import die_with_parent
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Store
from selftrain.ssl_tasks.store.runs import Run, all_runs
from selftrain.ssl_tasks.tracking.lineage import as_mermaid, as_tree
from selftrain.ssl_tasks.tracking.spool import without_password

if TYPE_CHECKING:
    from selftrain.ssl_tasks.report.page import Comparison

die_with_parent()  # the parent is `selftrain up` if its runner started this process
log = logging.getLogger("selftrain")
WORDS: dict[str, Any] = dict(coolname)  # coolname has no types
HEAD = ("round", "model", "labels", "pseudo-labels", "pseudo-label accuracy", "validation", "test", "decision")
# The recipe of this process's run; the runs of a deployment have only their configuration.
WRITTEN: ContextVar[Mapping[str, Any] | None] = ContextVar("written", default=None)
RETRIES = 4  # of a request, with growing pauses: half a minute for a server that restarts


def flow_run_name() -> str:
    """Returns the flow run's name; Prefect calls it in the flow run's context to replace the first name."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    assert context.parameters is not None
    given = context.flow_run.name
    return str(context.parameters["config"].name) if is_generated(given) else given


def is_generated(name: str) -> bool:
    """Returns whether a name is one that Prefect generates from its lists: an adjective and an animal."""
    adjective, dash, animal = name.partition("-")
    return not name or (bool(dash) and adjective in _words("adj_any") and animal in _words("subj"))


@functools.cache
def _words(kind: str) -> frozenset[str]:
    rule = WORDS[kind]
    if rule["type"] == "words":
        return frozenset(rule["words"])
    return frozenset().union(*(_words(part) for part in rule["lists"]))


@flow(name="self-training", flow_run_name=flow_run_name, persist_result=False, validate_parameters=True)
def self_training_flow(config: RunConfig, workspace: Path | None = None, force: tuple[str, ...] = ()) -> State[Any]:
    """Teacher → pseudo-labels → student, round by round, on the data of `config`.

    Args:
        config: the recipe; the form edits it, a YAML file is its home
        workspace: the folder of the store, the tracking and the runs
        force: names of stages to recompute
    """
    folder = workspace_folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    set_environment(folder)
    if deployment.get_id():
        _refuse_endless_crashes(config.runtime.restarts)
    # In a deployment, SIGTERM means that a person cancelled or that the run crashed; Prefect's own handler reports it.
    own_signals = not deployment.get_id()
    with TagsContext(
        current_tags=set()
    ):  # tasks must not inherit the flow run's tag, because each would ask for a slot of it
        run = run_pipeline(
            config,
            folder,
            frozenset(force),
            PrefectOrchestrator(config.runtime.retries, own_signals),
            written=WRITTEN.get(),
        )
    _publish(run)
    if run.info.get("champion"):
        _tell_champion(run)
    answer = {"run": run.id, **run.summary}
    if run.nothing_new and flow_run.run_count < 2:  # a restarted run reuses its own artifacts
        return Completed(name=NOTHING_NEW, message="every stage was reused; nothing was recomputed", data=answer)
    return Completed(message=run.summary["stopped"], data=answer)


def run_as_flow(
    config: RunConfig, folder: Path, force: tuple[str, ...] = (), written: Mapping[str, Any] | None = None
) -> Run:
    """Runs the flow to its end. If the server goes away, a finished run stays finished."""
    before = {run.id for run in all_runs(folder)}
    told = False
    token = WRITTEN.set(written)
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}), tags(process_tag()):
            state: Any = self_training_flow(config, folder, force, return_state=True)
        told = True
        state.result()
    except Exception as error:  # noqa: BLE001 - Prefect raises many errors if its server is away
        run = _ours(folder, before)
        if run is None or run.info["state"] != "done":
            raise first_of_ours(error) from None
        log.warning(
            "Prefect could not be told how %s ended (%s); the next run will tell it", run.id, type(error).__name__
        )
    finally:
        WRITTEN.reset(token)
        if told and (run := _ours(folder, before)) is not None:
            run.update(prefect_told=True)
    run = _ours(folder, before)
    assert run is not None, "a flow that ended well has made a run"
    return run


def _ours(folder: Path, before: set[str]) -> Run | None:
    """Returns the run that this process has just created, if any."""
    made = (run for run in all_runs(folder) if run.id not in before and run.info["pid"] == os.getpid())
    return next(made, None)


def first_of_ours(error: BaseException) -> BaseException:
    """Returns our own error behind one of Prefect's, else the error itself."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, SelftrainError):
        at = at.__context__
    return at or error


def _refuse_endless_crashes(restarts: int) -> None:
    """Ends a run that has crashed too often in a row, because it would crash again."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(flow_run.get_id()))
    if (crashes := crashes_in_a_row(states)) > restarts:
        raise SelftrainError(
            f"crashed {crashes} times in a row, more than runtime.restarts = {restarts}. Find the cause in "
            "its log, then press Retry"
        )


def crashes_in_a_row(states: Sequence[State[Any]]) -> int:
    """Counts the crashes of a run since a person or a schedule started it, from the history of its states."""
    ordered = sorted(states, key=lambda state: state.timestamp)
    asked = [
        at
        for at, state in enumerate(ordered)
        # Late and AwaitingConcurrencySlot are scheduled states too.
        if state.name in ("Scheduled", "AwaitingRetry") and state.message != RESTARTED
    ]
    return sum(state.is_crashed() for state in ordered[asked[-1] if asked else 0 :])


def _publish(run: Run) -> None:
    """Publishes the flow run's page unless nothing was computed; an error is logged and does not fail the run."""
    if run.nothing_new:
        return
    try:
        if url := os.environ.get("PREFECT_API_URL"):
            check_reachable(url)  # Prefect's client by itself would try for half a minute
        _publish_page(run)
    except Exception as error:  # noqa: BLE001 - the results are stored; `selftrain report` shows more
        log.warning("the page about %s could not be sent to Prefect: %s", run.id, error)


def _tell_champion(run: Run) -> None:
    """Emits an event about a new champion, to which automations may react with a notification or a deployment."""
    name = run.info["name"]
    emit_event(
        CHAMPION,
        resource={"prefect.resource.id": f"selftrain.model.{name}", "prefect.resource.name": name},
        payload={"model": name, "verdict": run.info["champion"], "run": run.id},
    )


def _publish_page(run: Run) -> None:
    """Publishes an artifact of the current flow run; Prefect lists the newest of a name under Artifacts."""
    key = re.sub(r"[^a-z0-9]+", "-", run.info["name"].lower()).strip("-")
    create_markdown_artifact(page_of(run), key=f"{key}-rounds", description=f"rounds and lineage of {run.id}")


def page_of(run: Run) -> str:
    """Returns the rounds as a table, and the best model's lineage as a tree and a diagram, in Markdown.

    Prefect's second UI draws Mermaid diagrams; its first UI shows only their text. Both show the tree.
    """
    summary = run.summary
    lines = [f"**{run.id}** · {_plain(summary['stopped'])}", "", _row(HEAD), _row(["---"] * len(HEAD))]
    for line in summary["rounds"]:
        mark = " ← best" if line["round"] == summary["best_round"] else ""
        accepted = "" if line["selected"] is None else f"{line['selected']:,}"
        shares = [share(line[name]) for name in ("pseudo_label_precision", "validation_accuracy", "test_accuracy")]
        name = "teacher" if line["round"] == 0 else str(line["round"])
        lines.append(_row([name + mark, line["model"], line["labeled"], accepted, *shares, line["decision"]]))
    if (server := without_password(os.environ.get("MLFLOW_TRACKING_URI", ""))).startswith("http"):
        lines += ["", f"MLflow: {server}, run `{run.id}` of the experiment `selftrain`"]
    lines += ["", f"Look further on the worker: `selftrain report {run.id}`, `selftrain labels {run.id}`"]
    if (best := run.rounds()[summary["best_round"]].model) is not None:
        from selftrain.ssl_tasks.tracking.trace import store_lineage  # imports pandas, which a reused run does not need

        names = {stage.key: stage.name for stage in run.stages()}
        lineage = store_lineage(Store(run.workspace / "store"), best, names)
        tree = indent(as_tree(lineage), "    ")  # indented, because a name could end a fenced block
        lines += ["", "### Lineage of the best model", "", tree, "", "### The lineage as a diagram", ""]
        lines += ["```mermaid", as_mermaid(lineage) + "```"]
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(_plain(str(cell)) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Escapes Markdown in names, which come from recipes and data."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def compare_as_flow(answer: "Callable[[], Comparison]", title: str, asked: Mapping[str, str]) -> "Comparison":
    """Calls `answer` within a flow run; every run that it starts is a child of this flow run."""
    found: list[Comparison] = []

    @flow(name="compare", flow_run_name=title, persist_result=False)
    def compare(asked: dict[str, str]) -> State[Any]:
        found.append(answer())
        _publish_table(found[0])
        return Completed(message=f"{sum(map(len, found[0].points))} runs, {len(found[0].points)} rows")

    try:
        with tags(process_tag()):
            state: Any = compare(dict(asked), return_state=True)
        state.result()
    except Exception as error:  # noqa: BLE001 - Prefect raises many errors if its server is away
        if not found:
            raise first_of_ours(error) from None
        log.warning(
            "Prefect could not be told how the comparison ended (%s); its result is complete", type(error).__name__
        )
    return found[0]


def _publish_table(comparison: "Comparison") -> None:
    """Publishes the table on the flow run's page; an error is logged and does not fail the comparison."""
    from selftrain.flows.rounds.comparison_record import (
        as_markdown,
        shown_rows,
    )  # imports pandas, which a run does not need

    key = re.sub(r"[^a-z0-9]+", "-", comparison.title.lower()).strip("-")
    try:
        create_markdown_artifact(as_markdown(shown_rows(comparison)), key=f"{key}-comparison")
    except Exception as error:  # noqa: BLE001 - the table is also in a file and in MLflow
        log.warning("the table of the comparison could not be sent to Prefect: %s", error)


@contextmanager
def child_of(number: str) -> Iterator[None]:
    """Makes flow runs that start in this block, on another machine, children of the given flow run."""
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
