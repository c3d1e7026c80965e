"""A run from its configuration to its summary: plain functions, or the same within a Prefect flow."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from selftrain.flows.rounds.conductor import Conductor, finished, interrupted
from selftrain.flows.rounds.interruption import interruptible
from selftrain.flows.rounds.reaper import mend_dead_runs
from selftrain.flows.rounds.self_training import Summary, self_training
from selftrain.ssl_tasks.settings.recipe import leaves
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.occupancy import at_work
from selftrain.ssl_tasks.store.runs import Run, all_runs
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.tracker import Ending, Tracker

log = logging.getLogger("selftrain")
REPORT = "report.html"
Prepare = Callable[[Conductor], None]


def run_pipeline(
    config: RunConfig,
    workspace: Path,
    force: frozenset[str] = frozenset(),
    isolate: bool = True,
    prepare: Prepare | None = None,
    command: str = "",
    own_signals: bool = True,
    written: Mapping[str, Any] | None = None,
) -> Run:
    """Runs the rounds and returns the run's record. `prepare` may wrap the stages (Prefect does).

    `written` is the recipe as it was written, which `rerun` changes.
    Without `own_signals`, the caller has a handler of SIGTERM that raises.
    """
    mend_dead_runs(workspace)
    run = Run.create(workspace, config, written, command=command)
    tracker = Tracker(default_uri(workspace), workspace)
    settings, text = leaves(config.model_dump(mode="json")), (run.path / "config.yaml").read_text()
    tracked = tracker.start_run(run.id, settings, text, {"selftrain.run": run.id})
    run.update(tracked=tracked)
    conductor = Conductor(run, config, tracker, tracked, force, isolate)
    if prepare is not None:
        prepare(conductor)
    stopped = "asked to stop"
    with at_work(workspace), interruptible(stopped) if own_signals else nullcontext(conductor.asked) as asked:
        try:
            conductor.asked = asked
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
    """The best round's model becomes the champion, if it beats the one that is."""
    best = run.rounds()[summary.best_round]
    line = next(line for line in summary.rounds if line.round == summary.best_round)
    if best.model is not None and line.validation_accuracy is not None and run.dataset is not None:
        digest = run.dataset.parts["validation"]
        tracker.promote(tracked, best.model, line.validation_accuracy, run.config.name, digest)


def _report(run: Run, tracker: Tracker, tracked: str) -> None:
    """The page about the run, in its folder and in MLflow. A run that succeeded does not fail for it.

    A run that met what an earlier one had made refers to that one's; `selftrain report` writes its own when asked.
    """
    if run.nothing_new and (before := _reported(run)) is not None:
        tracker.set_tags(tracked, {"selftrain.report": before.id})
        return
    from selftrain.ssl_tasks.report.page import write_report
    from selftrain.ssl_tasks.tracking.lineage import run_links

    try:
        tracker.log_file(tracked, write_report(run, run.path / REPORT, run_links(run, patience=5)))
    except Exception:  # the numbers are safe; the page can be written again with `selftrain report`
        log.exception("the report of %s could not be written. Write it again: selftrain report", run.id)


def _reported(run: Run) -> Run | None:
    """An earlier run with a report about the same artifacts."""
    digests = {stage.name: stage.digest for stage in run.stages()}
    written = (one for one in all_runs(run.workspace) if (one.path / REPORT).exists())
    return next((one for one in written if {stage.name: stage.digest for stage in one.stages()} == digests), None)
