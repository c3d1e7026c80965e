"""Verbs that compute: run, train, rerun, approve, clean."""

import json
import sys
from argparse import ArgumentParser, Namespace

from selftrain.flows.cli.verb import Verbs
from selftrain.flows.tables import print_table, printable, seconds, share
from selftrain.ssl_tasks.store.runs import Run


def add_recipe(verb: ArgumentParser, optional: bool = False) -> None:
    """The arguments of every verb that reads a recipe; an optional one is the quickstart."""
    number, default = ("?", "quickstart") if optional else (None, None)
    words = "a YAML recipe, or the name of a built-in one (quickstart)"
    verb.add_argument("config", metavar="CONFIG", nargs=number, default=default, help=words)
    verb.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override a setting; may be given often"
    )


def add_how(verb: ArgumentParser) -> None:
    """What every verb that runs a pipeline takes."""
    verb.add_argument("--json", action="store_true", help="end with one JSON object")
    verb.add_argument("--no-prefect", action="store_true", help="plain functions, without Prefect")
    verb.set_defaults(makes_run=True)


def add_run(verbs: Verbs) -> None:
    verb = verbs.add("run", _run, "run a recipe through all of its rounds; what is done already is reused")
    add_recipe(verb)
    verb.add_argument("--name", help="what the run is called; default the recipe's name")
    add_how(verb)


def add_train(verbs: Verbs) -> None:
    verb = verbs.add("train", _train, "train and evaluate the recipe's first model alone")
    add_recipe(verb)
    verb.add_argument("--name", help="what the run is called; default the recipe's name")
    add_how(verb)


def add_rerun(verbs: Verbs) -> None:
    verb = verbs.add("rerun", _rerun, "continue a run, or recompute one of its stages and what depends on it")
    verb.add_argument("run", metavar="RUN", help="id, unique prefix, name or last")
    words = "the stage to recompute, as `status` names it: teacher, select-1, student-2 (default: none)"
    verb.add_argument("stage", metavar="STAGE", nargs="?", help=words)
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C")
    add_how(verb)


def add_approve(verbs: Verbs) -> None:
    verb = verbs.add("approve", _approve, "let a run go on that waits for a person")
    verb.add_argument("run", metavar="RUN", nargs="?", default="last")


def add_clean(verbs: Verbs) -> None:
    verb = verbs.add("clean", _clean, "remove artifacts that no run names; says what first")
    verb.add_argument("--yes", action="store_true", help="really remove; without it nothing is touched")
    verb.add_argument("--cache", action="store_true", help="also what the next run makes again: decoded images, shards")


def _run(options: Namespace) -> None:
    from selftrain.flows.actions import verbs

    run = verbs.run(options.config, options.set, options.name, options.workspace, not options.no_prefect)
    show_summary(run, options.json)


def _train(options: Namespace) -> None:
    from selftrain.flows.actions import verbs

    how = options.workspace, not options.no_prefect
    show_summary(verbs.train(options.config, options.set, options.name, *how), options.json)


def _rerun(options: Namespace) -> None:
    from selftrain.flows.actions import verbs

    how = options.workspace, not options.no_prefect
    show_summary(verbs.rerun(options.run, options.stage, options.set, *how), options.json)


def _approve(options: Namespace) -> None:
    from selftrain.flows.actions import verbs

    print(f"round {verbs.approve(options.run, options.workspace)} approved")


def _clean(options: Namespace) -> None:
    from selftrain.flows.actions import verbs

    cleaned = verbs.clean(options.workspace, dry_run=not options.yes, cache=options.cache)
    for path in cleaned.paths:
        print(path)
    done = "removed" if options.yes else "would be removed; add --yes to remove them"
    size = cleaned.bytes + cleaned.cache_bytes * options.cache
    print(f"{len(cleaned.paths)} folders, {size / 1e6:.1f} MB {done}")
    if cleaned.at_work:
        print(f"{', '.join(cleaned.at_work)} at work: until the end of it, artifacts that no run names are kept")
    if cleaned.evaluations:
        print(f"{cleaned.evaluations} of them: what `selftrain evaluate` measured; asked again, it is computed again")
    if not options.cache:
        print(f"the cache holds {cleaned.cache_bytes / 1e6:.1f} MB that the next run would make again: --cache")


def show_summary(run: Run, as_json: bool) -> None:
    """The table that a run ends with, and where to look further."""
    summary = run.summary
    if as_json:
        print(json.dumps({"run": run.id, **summary}))
        return
    rows = [
        {
            "round": "teacher" if line["round"] == 0 else str(line["round"]),
            "model": line["model"],
            "labels": str(line["labeled"]),
            "invented": "" if line["selected"] is None else f"{line['selected']:,}",
            "their precision": share(line["pseudo_label_precision"]),
            "validation": share(line["validation_accuracy"]),
            "test": share(line["test_accuracy"]),
            **{
                f"median {split}": share(line.get(f"median_{split}_accuracy"))
                for split in ("validation", "test")
                if any(one.get(f"median_{split}_accuracy") is not None for one in summary["rounds"])
            },
            "time": seconds(line["seconds"]),
            "": "← best" if line["round"] == summary["best_round"] else "",
        }
        for line in summary["rounds"]
    ]
    print_table(rows, right=[name for name in rows[0] if name not in ("round", "model", "")])
    print(f"stopped: {summary['stopped']}")
    if unmatched := summary.get("unmatched_corrections"):
        print(f"{unmatched} corrections do not fit the data any more and are not used:")
        for reason in summary["unmatched_reasons"]:
            print(f"  {printable(reason)}")
    if summary.get("nothing_new"):
        print("nothing new: every stage was answered before")
    print(f"look further: selftrain status {run.id}", file=sys.stderr)
    for verb in ("labels", "report", "lineage"):
        print(f"              selftrain {verb} {run.id}", file=sys.stderr)


VERBS = [add_run, add_train, add_rerun, add_approve, add_clean]
