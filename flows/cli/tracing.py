"""Verbs that trace: lineage, report, sync."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from selftrain.flows.actions import looking
from selftrain.flows.cli.labelling import check_writable
from selftrain.flows.cli.verb import Verbs
from selftrain.flows.environment import workspace_folder
from selftrain.ssl_tasks.errors import DamagedArtifact, NotFound
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
    verb = verbs.add("sync", _sync, "send to MLflow what could not be sent while it was away; safe to repeat")
    verb.add_argument("--to", metavar="URI", help="another server than the one that it was meant for")


def _lineage(options: Namespace) -> None:
    from selftrain.ssl_tasks.tracking.lineage.graph import as_json, as_mermaid, as_tree
    from selftrain.ssl_tasks.tracking.lineage.samples import SampleLineage, sample_tree

    found = looking.lineage(options.what, options.run, options.verify, options.workspace)
    if isinstance(found, SampleLineage):
        print(json.dumps(asdict(found)) if options.json else sample_tree(found))
        return
    graph, damages = found.graph, found.damages
    if options.json:
        print(json.dumps({**json.loads(as_json(graph)), "damages": [asdict(one) for one in damages]}))
    else:
        print(as_mermaid(graph) if options.mermaid else as_tree(graph))
    if damages:
        called = {node.digest: f"{node.label} ({node.digest[:12]})" for node in graph.nodes.values()}
        lines = [
            f"{one.stage} {one.key[:12]} {one.file} {one.problem}; models that rest on it: "
            + (", ".join(called.get(model, model[:12]) for model in one.models) or "none")
            for one in damages
        ]
        raise DamagedArtifact("\n".join(["the lineage is damaged:", *lines]))
    if options.verify:
        print(f"verified: every file of {len(graph.nodes)} nodes is what its digest says")


def _report(options: Namespace) -> None:
    check_writable(options.output)
    print(looking.report(options.run, options.output, options.workspace))


def _sync(options: Namespace) -> None:
    from selftrain.ssl_tasks.tracking.spool import waiting_elsewhere

    folder = workspace_folder(options.workspace)
    report = looking.sync(options.to, folder)
    print(f"{report.sent} entries sent, {report.left} left, {report.rejected} refused")
    for sentence in waiting_elsewhere(folder):
        print(sentence)
    if report.left:
        address = without_password(options.to or default_uri(folder))
        raise NotFound(f"MLflow at {address} could not be reached: {report.reason}")


VERBS = [add_lineage, add_report, add_sync]
