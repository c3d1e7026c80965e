"""Verbs that look: status, plan, explain, config."""

import json
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from selftrain.flows.cli.running import add_recipe
from selftrain.flows.cli.verb import Verbs
from selftrain.flows.tables import print_table, printable, seconds

if TYPE_CHECKING:
    from selftrain.ssl_tasks.execution.progress import Progress


def add_status(verbs: Verbs) -> None:
    verb = verbs.add("status", _status, "how a run and its stages stand")
    verb.add_argument("run", metavar="RUN", nargs="?", default="last", help="id, unique prefix, name or last")
    verb.add_argument("--all", action="store_true", help="all runs, a line each")
    verb.add_argument("--json", action="store_true")


def add_plan(verbs: Verbs) -> None:
    verb = verbs.add("plan", _plan, "what would be computed, what reused and why, before anything runs")
    add_recipe(verb)
    verb.add_argument("--json", action="store_true")


def add_explain(verbs: Verbs) -> None:
    verb = verbs.add("explain", _explain, "why a stage ran or was reused: which part of its key differs")
    verb.add_argument("run", metavar="RUN")
    verb.add_argument("stage", metavar="STAGE")
    verb.add_argument("--json", action="store_true")


def add_config(verbs: Verbs) -> None:
    verb = verbs.add("config", _config, "the resolved, validated recipe, each value with where it came from")
    verb.add_argument("--reference", action="store_true", help="every setting there is, as Markdown")
    add_recipe(verb, optional=True)
    verb.add_argument("--json", action="store_true")


def _status(options: Namespace) -> None:
    from selftrain.flows.actions import verbs
    from selftrain.ssl_tasks.store.advice import UNFINISHED, advice
    from selftrain.ssl_tasks.store.runs import find_run

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
    """train 120/500, 14.2 a second, 27 s left"""
    if done is None:
        return ""
    words = f"{done.what} {done.done:,}/{done.total:,}".strip()
    if done.rate is None or done.remaining_seconds is None:
        return words
    return f"{words}, {done.rate:.3g} a second, {seconds(done.remaining_seconds)} left"


def _plan(options: Namespace) -> None:
    from selftrain.flows.actions import verbs

    planned = verbs.plan(options.config, options.set, options.workspace)
    if options.json:
        print(json.dumps({"stages": [asdict(stage) for stage in planned]}))
        return
    print_table([{"stage": one.name, "": one.action, "key": one.key[:12], "why": one.why} for one in planned])


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


VERBS = [add_status, add_plan, add_explain, add_config]
