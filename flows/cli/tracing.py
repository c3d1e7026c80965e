"""Verbs that trace: lineage, report, sync."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from selftrain.flows.cli.labelling import check_writable
from selftrain.flows.cli.verb import Verbs
from selftrain.flows.environment import workspace_folder
from selftrain.ssl_tasks.errors import DamagedArtifact, NotFound
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.store.runs import Run, find_run
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.spool import without_password


def add_lineage(verbs: Verbs) -> None:
    verb = verbs.add("lineage", _lineage, "what a run, a model, an artifact or a single image came from")
    verb.add_argument("what", metavar="X", help="a run, a stage of the last run, a digest, or a sample id")
    verb.add_argument("--run", metavar="RUN", default="last", help="the run that a sample or a stage is looked up in")
    verb.add_argument("--verify", action="store_true", help="check every file against its digest")
    shape = verb.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true")
    shape.add_argument("--mermaid", action="store_true")


def add_report(verbs: Verbs) -> None:
    verb = verbs.add("report", _report, "one self-contained HTML page about a run")
    verb.add_argument("run", metavar="RUN", nargs="?", default="last")
    verb.add_argument("--output", metavar="FILE", type=Path, help="default report.html in the run's folder")


def add_sync(verbs: Verbs) -> None:
    verb = verbs.add("sync", _sync, "send to MLflow what could not be sent while it was away; twice is once")
    verb.add_argument("--to", metavar="URI", help="another server than the one that it was meant for")


def _lineage(options: Namespace) -> int | None:
    from selftrain.ssl_tasks.tracking.lineage.graph import as_json, as_mermaid, as_tree
    from selftrain.ssl_tasks.tracking.lineage.trace import store_lineage
    from selftrain.ssl_tasks.tracking.lineage.verification import verify

    folder = workspace_folder(options.workspace)
    store = Store(folder / "store")
    found = _find(folder, store, options)
    if found is None:
        _sample(find_run(folder, options.run), options)
        return None
    artifact, names = found
    graph = store_lineage(store, artifact, names)
    damages = verify(store, graph) if options.verify else []
    if options.json:
        print(json.dumps({**json.loads(as_json(graph)), "damages": [asdict(one) for one in damages]}))
    else:
        print(as_mermaid(graph) if options.mermaid else as_tree(graph))
    if not options.verify:
        return None
    if damages:
        called = {node.digest: f"{node.label} ({node.digest[:12]})" for node in graph.nodes.values()}
        lines = [
            f"{one.stage} {one.key[:12]} {one.file} {one.problem}; models that rest on it: "
            + (", ".join(called.get(model, model[:12]) for model in one.models) or "none")
            for one in damages
        ]
        raise DamagedArtifact("\n".join(["the lineage is damaged:", *lines]))
    print(f"verified: every file of {len(graph.nodes)} nodes is what its digest says")
    return None


def _find(folder: Path, store: Store, options: Namespace) -> tuple[Artifact, dict[str, str]] | None:
    """The artifact that X names, and what its run calls the stages; None where X must be a sample."""
    from selftrain.ssl_tasks.tracking.lineage.trace import find_artifact

    try:
        run = find_run(folder, options.what)
        return _last_artifact(run), _names(run)
    except NotFound:
        pass
    run = find_run(folder, options.run)
    if (artifact := run.artifact(options.what)) is not None:
        return artifact, _names(run)
    try:
        return find_artifact(store, options.what), _names(run)
    except NotFound:
        return None


def _last_artifact(run: Run) -> Artifact:
    for one in reversed(run.rounds()):
        for artifact in (one.gate, one.evaluation, one.model, one.selection, one.predictions):
            if artifact is not None:
                return artifact
    if run.dataset is not None:
        return run.dataset
    raise NotFound(f"run {run.id} has made nothing yet")


def _names(run: Run) -> dict[str, str]:
    return {stage.key: stage.name for stage in run.stages() if stage.key}


def _sample(run: Run, options: Namespace) -> None:
    from selftrain.ssl_tasks.tracking.lineage.samples import sample_lineage, sample_tree

    lineage = sample_lineage(run, options.what)
    print(json.dumps(asdict(lineage)) if options.json else sample_tree(lineage))


def _report(options: Namespace) -> None:
    from selftrain.flows.rounds.pipeline import REPORT
    from selftrain.ssl_tasks.report.page import write_report
    from selftrain.ssl_tasks.tracking.lineage.links import run_links

    check_writable(options.output)
    run = find_run(workspace_folder(options.workspace), options.run)
    run.mend()  # a page about a run whose process died does not say that it still runs
    print(write_report(run, options.output or run.path / REPORT, run_links(run)))


def _sync(options: Namespace) -> None:
    from selftrain.flows.environment import set_environment
    from selftrain.ssl_tasks.tracking.spool import waiting_elsewhere
    from selftrain.ssl_tasks.tracking.tracker import sync

    folder = workspace_folder(options.workspace)
    set_environment(folder)
    report = sync(folder, options.to)
    print(f"{report.sent} entries sent, {report.left} left, {report.rejected} refused")
    for sentence in waiting_elsewhere(folder):
        print(sentence)
    if report.left:
        address = without_password(options.to or default_uri(folder))
        raise NotFound(f"MLflow at {address} could not be reached: {report.reason}")


VERBS = [add_lineage, add_report, add_sync]
