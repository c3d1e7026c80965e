"""Runs a recipe: checks its paths, starts the processes that it needs, runs its rounds and writes its summary."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from selftrain.flows.rounds.conductor import Conductor, Orchestrator, finished, interrupted, never
from selftrain.flows.rounds.interruption import interruptible
from selftrain.flows.rounds.self_training import Summary, self_training
from selftrain.models.settings import check_safetensors, weights_file
from selftrain.ssl_tasks.data.sources import open_source
from selftrain.ssl_tasks.errors import ConfigError, UserError
from selftrain.ssl_tasks.execution.process import start_fork_server
from selftrain.ssl_tasks.execution.progress import display
from selftrain.ssl_tasks.settings.recipe import leaves
from selftrain.ssl_tasks.settings.run_config import RunConfig, learners
from selftrain.ssl_tasks.settings.section import existing_file
from selftrain.ssl_tasks.store.locks import at_work
from selftrain.ssl_tasks.store.runs import Run, all_runs, dumped
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.tracker import Ending, Tracker, start_ahead
from selftrain.ssl_tasks.trained import require_trained

log = logging.getLogger("selftrain")
REPORT = "report.html"


def check_paths(config: RunConfig, cache: Path) -> None:
    """Raises one error that names every path that is missing or of the wrong kind."""
    problems: list[UserError] = []
    for look in _looks(config, cache):
        try:
            look()
        except UserError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError("\n".join([f"{len(problems)} paths cannot be used:", *(f"  {one}" for one in problems)]))


def _looks(config: RunConfig, cache: Path) -> Iterator[Callable[[], object]]:
    yield open_source(config.data.source, cache).check
    if config.given_teacher is not None:
        yield partial(require_trained, config.given_teacher)
    for name, learner in learners(config):
        if (file := weights_file(learner.model)) is not None:
            yield partial(check_safetensors, file, f"{name}.model.pretrained")
    for number, settings in enumerate(config.rounds, 1):
        if settings.select.overrides is not None:
            what = f"rounds.{number}.select.overrides"
            yield partial(existing_file, settings.select.overrides, what, "a CSV or Parquet file")


def mend_dead_runs(workspace: Path) -> None:
    """Corrects the records of runs whose process died; the next run resumes at their checkpoints."""
    for run in all_runs(workspace):
        if run.mend():
            log.info(
                "the process of run %s had died; its finished stages are reused and its checkpoints resumed", run.id
            )


def warm_up(config: RunConfig, workspace: Path, force: Collection[str] = ()) -> None:
    """Starts processes whose imports take seconds, while Prefect is imported here.

    They are the process that sends records to MLflow and, if a stage is likely to be computed, the one that starts
    stages.
    """
    start_ahead(workspace, default_uri(workspace))
    if force or not _is_done(config, workspace):
        start_fork_server()


def _is_done(config: RunConfig, workspace: Path) -> bool:
    """Returns whether a run of the same settings is done: a guess, without reading the data, that all is reused."""
    text = dumped(config)
    done = (run for run in all_runs(workspace) if run.info["state"] == "done")
    return any((run.path / "config.yaml").read_bytes() == text.encode() for run in done)


def run_pipeline(
    config: RunConfig,
    workspace: Path,
    force: frozenset[str] = frozenset(),
    orchestrator: Orchestrator | None = None,
    written: Mapping[str, Any] | None = None,
) -> Run:
    """Runs the rounds and returns the run's record; `written` is the recipe as written, which `rerun` changes."""
    mend_dead_runs(workspace)
    orchestrator = orchestrator or Orchestrator()
    run = Run.create(workspace, config, written, **orchestrator.details(workspace))
    tracker = Tracker(default_uri(workspace), workspace)
    settings, text = leaves(config.model_dump(mode="json")), (run.path / "config.yaml").read_text()
    tracked = tracker.start_run(run.id, settings, text, {"selftrain.run": run.id})
    run.update(tracked=tracked)
    shown = display()
    with at_work(workspace), interruptible() if orchestrator.own_signals else nullcontext(never) as asked:
        conductor = Conductor(
            config,
            workspace,
            run,
            tracker=tracker,
            tracked=tracked,
            force=force,
            orchestrator=orchestrator,
            display=shown,
            asked_to_stop=asked,
        )
        try:
            summary = self_training(config, conductor)
            run.write_summary({**summary.as_json(), "nothing_new": run.nothing_new})
            finished(run, None, summary.stopped)
            _promote(run, summary, tracker, tracked)
            _report(run, tracker, tracked)
            tracker.finish_run(tracked, "FINISHED", {"selftrain.stopped": summary.stopped})
        except BaseException as error:
            conductor.stop()
            finished(run, error)
            ending: Ending = "KILLED" if interrupted(error) else "FAILED"
            tracker.finish_run(tracked, ending, {"selftrain.stopped": run.info["stopped"]})
            raise
        finally:
            conductor.close()
            report = tracker.close()
            run.update(champion=report.champion)
            if report.left:
                log.warning(
                    "%d records are not yet in MLflow (%s). Send them later: selftrain sync", report.left, report.reason
                )
    return run


def _promote(run: Run, summary: Summary, tracker: Tracker, tracked: str) -> None:
    """Makes the best round's model the champion if it beats the current one."""
    best = run.rounds()[summary.best_round]
    line = next(line for line in summary.rounds if line.round == summary.best_round)
    if best.model is not None and line.validation_accuracy is not None and run.dataset is not None:
        digest = run.dataset.parts["validation"]
        tracker.promote(tracked, best.model, line.validation_accuracy, run.config.name, digest)


def _report(run: Run, tracker: Tracker, tracked: str) -> None:
    """Writes the run's report to its folder and to MLflow; an error is logged and does not fail the run.

    A run that reused everything links to the earlier run's report; `selftrain report` can write its own.
    """
    if run.nothing_new and (before := _reported(run)) is not None:
        tracker.set_tags(tracked, {"selftrain.report": before.id})
        return
    from selftrain.ssl_tasks.report.page import write_report
    from selftrain.ssl_tasks.tracking.lineage import run_links

    try:
        tracker.log_file(tracked, write_report(run, run.path / REPORT, run_links(run, patience=5)))
    except Exception:  # the results are stored; `selftrain report` can write the page again
        log.exception("the report of %s could not be written. Write it again: selftrain report", run.id)


def _reported(run: Run) -> Run | None:
    """Returns an earlier run with a report about the same artifacts."""
    digests = {stage.name: stage.digest for stage in run.stages()}
    written = (one for one in all_runs(run.workspace) if (one.path / REPORT).exists())
    return next((one for one in written if {stage.name: stage.digest for stage in one.stages()} == digests), None)
