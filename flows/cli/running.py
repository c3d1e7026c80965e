"""Verbs that compute or decide about a run: run, train, rerun, approve, compare, clean."""

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.flows.cli.labelling import check_writable
from selftrain.flows.cli.verb import Verbs
from selftrain.flows.tables import print_table, printable, seconds, share
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.store.runs import Run

if TYPE_CHECKING:
    from selftrain.ssl_tasks.report.page import Comparison


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

    run = verbs.run(options.config, options.set, options.name, options.workspace, not options.no_prefect, command="run")
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


WORDS = ("run", "round", "method", "labels", "seeds", "note")


def add_compare(verbs: Verbs) -> None:
    verb = verbs.add("compare", _compare, "runs side by side on the same test images, or methods × budgets × seeds")
    verb.usage = (
        "selftrain compare RUN RUN …                                            the first is the reference\n"
        "       selftrain compare CONFIG --methods a,b --labels 5,10 --seeds 0,1,2     each cell is a run, made once"
    )
    verb.add_argument("words", nargs="+", metavar="RUN", help="runs, or one recipe with --methods, --labels or --seeds")
    verb.add_argument("--methods", metavar="a,b", type=_words, default=[], help="default the recipe's own")
    verb.add_argument("--labels", metavar="5,10", type=_integers, default=[], help="per class; default the recipe's")
    verb.add_argument("--seeds", metavar="0,1,2", type=_integers, default=[], help="of training and of the split")
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of the recipe")
    verb.add_argument("--no-prefect", action="store_true", help="plain functions, without Prefect")
    verb.add_argument("--json", metavar="FILE", type=Path, help="write JSON instead of a table; - is stdout")
    verb.add_argument("--markdown", metavar="FILE", type=Path, help="write Markdown instead of a table; - is stdout")
    verb.add_argument("--html", metavar="FILE", type=Path, help="write a page with charts instead of a table")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _integers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise ArgumentTypeError(f"found {text!r}, expected whole numbers such as 0,1,2") from error


def _compare(options: Namespace) -> None:
    check_writable(options.json, options.markdown, options.html)
    comparison = _compared(options)
    from selftrain.flows.rounds.comparison_record import as_json, as_markdown, record, shown_rows
    from selftrain.ssl_tasks.report.page import render_comparison

    rows = shown_rows(comparison)
    if options.json:
        _write(options.json, as_json(comparison))
    if options.markdown:
        _write(options.markdown, as_markdown(rows))
    if options.html:
        _write(options.html, render_comparison(comparison))
    if not (options.json or options.markdown or options.html):
        print_table(rows, right=[name for name in rows[0] if name not in WORDS])
    sys.stdout.flush()  # before MLflow is told, which may take a while
    print(f"kept, as a page too, in {record(comparison, options.workspace)}", file=sys.stderr)


def _compared(options: Namespace) -> "Comparison":
    from selftrain.flows.actions.compare import compare_methods, compare_runs

    if options.methods or options.labels or options.seeds:
        if len(options.words) != 1:
            raise ConfigError(f"found {len(options.words)} recipes; expected one with --methods, --labels and --seeds")
        grid = options.methods, options.labels, options.seeds or [0]
        return compare_methods(options.words[0], *grid, options.set, options.workspace, not options.no_prefect)
    if options.set:
        raise ConfigError(
            "--set changes a recipe, and runs are compared as they are; add --methods, --labels or --seeds"
        )
    return compare_runs(options.words, options.workspace)


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        print(text.rstrip("\n"))
        return
    path.write_text(text)
    print(f"wrote {path}", file=sys.stderr)


VERBS = [add_run, add_train, add_rerun, add_approve, add_compare, add_clean]
