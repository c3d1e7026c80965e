"""Defines the verbs that only read (status, plan, explain, config, report, lineage), and sync to MLflow."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.flows.actions import looking
from selftrain.flows.cli.labelling import check_writable
from selftrain.flows.cli.running import add_recipe
from selftrain.flows.cli.verb import JSON, RUN, Verbs
from selftrain.flows.environment import workspace_folder
from selftrain.flows.tables import print_table, printable, seconds, size
from selftrain.ssl_tasks.errors import DamagedArtifact, NotFound
from selftrain.ssl_tasks.tracking.client import default_uri
from selftrain.ssl_tasks.tracking.spool import without_password

if TYPE_CHECKING:
    from collections.abc import Sequence

    from selftrain.flows.rounds.planning import Estimate, PlannedStage
    from selftrain.ssl_tasks.execution.progress import Progress


def add_status(verbs: Verbs) -> None:
    verb = verbs.add(
        "status",
        _status,
        "Show the stages of a run: state, time, and why each was computed.",
        ("status", "the last run, with what to do next"),
        ("status --all", "all runs of the workspace, one line each"),
    )
    verb.add_argument("run", metavar="RUN", nargs="?", default="last", help=f"{RUN} (default: last)")
    verb.add_argument("--all", action="store_true", help="list all runs of the workspace, one line each")
    verb.add_argument("--json", action="store_true", help=JSON)


def add_plan(verbs: Verbs) -> None:
    verb = verbs.add(
        "plan",
        _plan,
        "Show which stages a run would compute or reuse, and why.",
        ("plan quickstart", "before the first run: every stage would be computed"),
        ("plan quickstart --estimate", "how long each stage would take, and what memory and disk it needs"),
    )
    add_recipe(verb)
    words = "measure the time, memory and disk of each stage by a few real steps of the recipe on this machine"
    verb.add_argument("--estimate", action="store_true", help=words)
    verb.add_argument("--json", action="store_true", help=JSON)


def add_explain(verbs: Verbs) -> None:
    verb = verbs.add(
        "explain",
        _explain,
        "Explain why a stage of a run was computed or reused.",
        ("explain last student-2", "which setting or input of this stage changed"),
        ("explain last select-1 --json", "the same for a script"),
    )
    verb.add_argument("run", metavar="RUN", help=RUN)
    verb.add_argument("stage", metavar="STAGE", help="a stage, as `selftrain status` names it: teacher, select-1, …")
    verb.add_argument("--json", action="store_true", help=JSON)


def add_config(verbs: Verbs) -> None:
    verb = verbs.add(
        "config",
        _config,
        "Show every setting of a recipe with its value and where the value comes from.",
        ("config selftrain.yaml", "the settings of your recipe, defaults included"),
        ("config --reference", "every setting with its type, range and default, as Markdown"),
    )
    words = "print the reference of all settings as Markdown, without a recipe"
    verb.add_argument("--reference", action="store_true", help=words)
    add_recipe(verb, optional=True)
    verb.add_argument("--json", action="store_true", help=JSON)


def _status(options: Namespace) -> None:
    from selftrain.flows.actions import verbs
    from selftrain.ssl_tasks.store.runs import UNFINISHED, advice, find_run

    if options.all:
        runs = verbs.runs(options.workspace)
        if options.json:
            print(json.dumps({"runs": runs}))
        else:
            print_table([{"run": one["id"], "state": one["state"], "stopped": one["stopped"]} for one in runs])
        return
    stages = verbs.stages(options.run, options.workspace)
    run = find_run(verbs.workspace_folder(options.workspace), options.run)
    if options.json:
        keys = ("name", "key", "state", "seconds", "reason", "log", "digest", "artifact", "round")
        lines = [{key: asdict(stage)[key] for key in keys} for stage in stages]
        for line, stage in zip(lines, stages, strict=True):
            done = verbs.progress(stage, options.workspace)
            line["progress"] = None if done is None else asdict(done)
        print(json.dumps({"run": run.id, "state": run.info["state"], "stopped": run.info["stopped"], "stages": lines}))
        return
    rows = [
        {
            "stage": stage.name,
            "state": stage.state,
            "time": seconds(stage.seconds) if stage.started else "",
            "key": stage.key[:12],
            "reason": stage.reason or _progress_words(verbs.progress(stage, options.workspace)),
        }
        for stage in stages
    ]
    print_table(rows, right=("time",))
    print(printable(f"{run.id}: {run.info['state']}" + (f" · {run.info['stopped']}" if run.info["stopped"] else "")))
    for stage in stages:
        if stage.state in UNFINISHED:
            print(f"log of {stage.name}: {stage.log}")
    if said := advice(run):
        print(said)


def _progress_words(done: "Progress | None") -> str:
    """Formats progress, such as: train 120/500, 14.2 per second, 27 s left."""
    if done is None:
        return ""
    words = f"{done.what} {done.done:,}/{done.total:,}".strip()
    if done.rate is None or done.remaining_seconds is None:
        return words
    return f"{words}, {done.rate:.3g} per second, {seconds(done.remaining_seconds)} left"


def _plan(options: Namespace) -> None:
    from selftrain.flows.actions import verbs

    planned = verbs.plan(options.config, options.set, options.workspace, options.estimate)
    if options.estimate:
        _print_estimate(planned, options.json)
    elif options.json:
        print(json.dumps({"stages": [_without_estimate(stage) for stage in planned]}))
    else:
        print_table([{"stage": one.name, "": one.action, "key": one.key[:12], "why": one.why} for one in planned])


def _without_estimate(stage: "PlannedStage") -> dict[str, Any]:
    return {name: value for name, value in asdict(stage).items() if name != "estimate"}


def _print_estimate(planned: "Sequence[PlannedStage]", as_json: bool) -> None:
    """Prints a plan with its costs: a table, the total, and what a person should know about these numbers."""
    from selftrain.flows.rounds.estimate import total

    whole = total(planned)
    if as_json:
        print(json.dumps({"stages": [asdict(stage) for stage in planned], "total": asdict(whole)}))
        return

    def costs(found: "Estimate | None", action: str) -> dict[str, str]:
        if found is None:
            return dict.fromkeys(("time", "memory", "disk"), "" if action == "reuse" else "unknown")
        return {"time": seconds(found.seconds), "memory": size(found.memory_bytes), "disk": size(found.disk_bytes)}

    rows = [
        {"stage": one.name, "": one.action, **costs(one.estimate, one.action), "key": one.key[:12], "why": one.why}
        for one in planned
    ]
    rows.append({"stage": "total", "": "", **costs(whole, ""), "key": "", "why": "if every stage runs to its end"})
    print_table(rows, right=("time", "memory", "disk"))
    if whole.temporary_bytes:
        print(f"checkpoints need {size(whole.temporary_bytes)} more while a stage trains")
    if whole.gpu_memory_bytes is not None:
        print(f"the largest stage needs {size(whole.gpu_memory_bytes)} of a GPU's memory")
    for note in dict.fromkeys(note for one in planned if one.estimate for note in one.estimate.notes):
        stages = [one.name for one in planned if one.estimate and note in one.estimate.notes]
        print(printable(f"{', '.join(stages)}: {note}"))
    if absent := [one.name for one in planned if one.estimate is None and one.action != "reuse"]:
        print(f"{', '.join(absent)}: fetched by the run and not counted; networks were measured with random weights")


def _explain(options: Namespace) -> None:
    from selftrain.flows.actions.looking import explain

    found = explain(options.run, options.stage, options.workspace)
    if options.json:
        print(json.dumps(asdict(found)))
        return
    print(f"{found.stage} was {found.sentence}")
    for difference in found.differences:
        print(f"  {printable(difference)}")


def _config(options: Namespace) -> None:
    from selftrain.flows.actions.reference import reference
    from selftrain.ssl_tasks.settings.recipe import load_recipe, values_with_origin

    if options.reference:
        print(reference(), end="")
        return
    recipe = load_recipe(options.config, options.set)
    if options.json:
        print(recipe.config.model_dump_json())
        return
    rows = [{"setting": name, "value": value, "from": origin} for name, value, origin in values_with_origin(recipe)]
    print_table(rows)


def add_lineage(verbs: Verbs) -> None:
    verb = verbs.add(
        "lineage",
        _lineage,
        "Show what a run, a model, an artifact or an image was made from.",
        ("lineage last --verify", "from the last model back to the labelled images, every file checked"),
        ("lineage digits/1101", "one image: its pseudo-label in each round, and the students trained on it"),
        exit_codes="0 done · 2 invalid input · 3 a file differs from its digest · 130 interrupted",
    )
    words = "a run, a stage of the run, the digest of an artifact, or a sample id"
    verb.add_argument("what", metavar="WHAT", help=words)
    words = f"the run in which a stage or a sample is looked up: {RUN} (default: last)"
    verb.add_argument("--run", metavar="RUN", default="last", help=words)
    verb.add_argument("--verify", action="store_true", help="check every file against its digest")
    shape = verb.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print one JSON object instead of a tree")
    shape.add_argument("--mermaid", action="store_true", help="print a Mermaid flow chart instead of a tree")


def add_report(verbs: Verbs) -> None:
    verb = verbs.add(
        "report",
        _report,
        "Write one HTML page about a run: accuracy, pseudo-labels, gallery, lineage.",
        ("report last", "write the page and print its path"),
        ("report last --output report.html", "write it into the current folder"),
    )
    verb.add_argument("run", metavar="RUN", nargs="?", default="last", help=f"{RUN} (default: last)")
    words = "file to write (default: report.html in the run's folder)"
    verb.add_argument("--output", metavar="FILE", type=Path, help=words)


def add_sync(verbs: Verbs) -> None:
    verb = verbs.add(
        "sync",
        _sync,
        "Send records to MLflow that could not be sent earlier; safe to repeat.",
        ("sync", "send what is left to the server that the runs named"),
        ("sync --to http://mlflow.example:5000", "send it to another server"),
    )
    words = "MLflow server to send to (default: MLFLOW_TRACKING_URI, else the workspace's own database)"
    verb.add_argument("--to", metavar="URI", help=words)


def _lineage(options: Namespace) -> None:
    from selftrain.ssl_tasks.tracking.lineage import as_json, as_mermaid, as_tree
    from selftrain.ssl_tasks.tracking.trace import SampleLineage, sample_tree

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
            f"{one.stage} {one.key[:12]} {one.file} {one.problem}; models made from it: "
            + (", ".join(called.get(model, model[:12]) for model in one.models) or "none")
            for one in damages
        ]
        raise DamagedArtifact("\n".join(["found damaged files in the lineage:", *lines]))
    if options.verify:
        print(f"verified: every file of {len(graph.nodes)} artifacts matches its digest")


def _report(options: Namespace) -> None:
    check_writable(options.output)
    print(looking.report(options.run, options.output, options.workspace))


def _sync(options: Namespace) -> None:
    from selftrain.ssl_tasks.tracking.spool import waiting_elsewhere

    folder = workspace_folder(options.workspace)
    report = looking.sync(options.to, folder)
    print(f"{report.sent} records sent, {report.left} not sent, {report.rejected} refused by MLflow")
    for sentence in waiting_elsewhere(folder):
        print(sentence)
    if report.left:
        address = without_password(options.to or default_uri(folder))
        raise NotFound(
            f"MLflow at {address} could not be reached: {report.reason}. When it answers again: selftrain sync"
        )
