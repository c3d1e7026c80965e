"""Verbs that compute or decide about a run: run, train, rerun, approve, compare, clean."""

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.flows.cli.labelling import check_writable
from selftrain.flows.cli.verb import RUN, SET, STAGE_CODES, Verbs
from selftrain.flows.tables import counted, print_table, printable, seconds, share
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.store.runs import Run

if TYPE_CHECKING:
    from selftrain.ssl_tasks.report.page import Comparison


def add_recipe(verb: ArgumentParser, optional: bool = False) -> None:
    """Adds the arguments of every verb that reads a recipe; an optional recipe defaults to the quickstart."""
    words = "a YAML recipe, or the name of a built-in one, such as quickstart"
    if optional:
        verb.add_argument("config", metavar="CONFIG", nargs="?", default="quickstart", help=f"{words} (the default)")
    else:
        verb.add_argument("config", metavar="CONFIG", help=words)
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help=SET)


def add_how(verb: ArgumentParser) -> None:
    """Adds the options of every verb that runs a pipeline."""
    verb.add_argument("--json", action="store_true", help="print one JSON object at the end instead of a table")
    verb.add_argument("--no-prefect", action="store_true", help="run without Prefect: no flow run, no retries")
    verb.set_defaults(makes_run=True)


def add_run(verbs: Verbs) -> None:
    verb = verbs.add(
        "run",
        _run,
        "Train a teacher and rounds of students from a recipe; finished stages are reused.",
        ("run quickstart", "50 labelled digits and three rounds of students, on a CPU in about a minute"),
        ("run selftrain.yaml --set rounds=1 --name trial", "your own recipe with one round, under another name"),
        exit_codes=STAGE_CODES,
    )
    add_recipe(verb)
    verb.add_argument("--name", help="name of the run (default: the recipe's name)")
    add_how(verb)


def add_train(verbs: Verbs) -> None:
    verb = verbs.add(
        "train",
        _train,
        "Train and evaluate only the teacher of a recipe, without rounds of students.",
        ("train configs/digits/fixmatch.yaml", "one FixMatch model on 50 labelled digits"),
        ("train quickstart --set teacher.train.steps=600", "a longer training"),
        exit_codes=STAGE_CODES,
    )
    add_recipe(verb)
    verb.add_argument("--name", help="name of the run (default: the recipe's name)")
    add_how(verb)


def add_rerun(verbs: Verbs) -> None:
    verb = verbs.add(
        "rerun",
        _rerun,
        "Resume a run, or recompute one of its stages and all that depend on it.",
        ("rerun last", "resume the last run; finished stages are reused"),
        ("rerun last student-2", "recompute this stage, then the stages that depend on it"),
        exit_codes=STAGE_CODES,
    )
    verb.add_argument("run", metavar="RUN", help=RUN)
    words = "stage to recompute, as `selftrain status` names it: teacher, select-1, student-2 (default: none)"
    verb.add_argument("stage", metavar="STAGE", nargs="?", help=words)
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help=SET)
    add_how(verb)


def add_approve(verbs: Verbs) -> None:
    verb = verbs.add(
        "approve",
        _approve,
        "Approve the pseudo-labels that a run holds for review, so that it continues.",
        ("approve", "approve the round that the last run waits for"),
        ("approve digits", "the newest run with this name"),
    )
    verb.add_argument("run", metavar="RUN", nargs="?", default="last", help=f"{RUN} (default: last)")


def add_clean(verbs: Verbs) -> None:
    verb = verbs.add(
        "clean",
        _clean,
        "Delete artifacts that no run references; without --yes, only list them.",
        ("clean", "list what would be deleted, and its size"),
        ("clean --yes --cache", "delete it, and the cache of decoded images"),
    )
    verb.add_argument("--yes", action="store_true", help="delete the files (default: only list them)")
    words = "also delete the cache (decoded images, file digests, shards); the next run writes it again"
    verb.add_argument("--cache", action="store_true", help=words)


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
    done = "deleted" if options.yes else "can be deleted: selftrain clean --yes"
    size = cleaned.bytes + cleaned.cache_bytes * options.cache
    print(f"{counted(len(cleaned.paths), 'folder')}, {size / 1e6:.1f} MB {done}")
    if cleaned.at_work:
        print(f"unreferenced artifacts are kept while these run: {', '.join(cleaned.at_work)}")
    if cleaned.evaluations:
        print(f"{cleaned.evaluations} of them come from `selftrain evaluate` and would be recomputed when needed")
    if not options.cache:
        print(
            f"the cache holds {cleaned.cache_bytes / 1e6:.1f} MB that the next run would write again. "
            "Delete it too: --cache"
        )


def show_summary(run: Run, as_json: bool) -> None:
    """Prints the table at the end of a run, and the commands that show more."""
    summary = run.summary
    if as_json:
        print(json.dumps({"run": run.id, **summary}))
        return
    rows = [
        {
            "round": "teacher" if line["round"] == 0 else str(line["round"]),
            "model": line["model"],
            "labels": str(line["labeled"]),
            "pseudo-labels": "" if line["selected"] is None else f"{line['selected']:,}",
            "pseudo-label accuracy": share(line["pseudo_label_precision"]),
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
        print(f"{counted(unmatched, 'correction')} ignored, because the data has changed:")
        for reason in summary["unmatched_reasons"]:
            print(f"  {printable(reason)}")
    if summary.get("nothing_new"):
        print("every stage was reused; nothing was recomputed")
    print(f"look further: selftrain status {run.id}", file=sys.stderr)
    for verb in ("labels", "report", "lineage"):
        print(f"              selftrain {verb} {run.id}", file=sys.stderr)


WORDS = ("run", "round", "method", "labels", "seeds", "note")


def add_compare(verbs: Verbs) -> None:
    verb = verbs.add(
        "compare",
        _compare,
        "Compare runs, or methods × label budgets × seeds, on the same test images.",
        ("compare last digits-a1b2", "two runs; the first is the reference"),
        ("compare quickstart --methods supervised,fixmatch --seeds 0,1", "mean ± std over seeds, and paired tests"),
        exit_codes=STAGE_CODES,
    )
    verb.usage = (
        "selftrain compare RUN RUN …                                            the first is the reference\n"
        "       selftrain compare CONFIG --methods a,b --labels 5,10 --seeds 0,1,2     one run per combination"
    )
    words = "two or more runs, or one recipe with --methods, --labels or --seeds"
    verb.add_argument("words", nargs="+", metavar="RUN", help=words)
    words = "methods to compare (default: the recipe's)"
    verb.add_argument("--methods", metavar="a,b", type=_words, default=[], help=words)
    words = "labelled images per class (default: the recipe's)"
    verb.add_argument("--labels", metavar="5,10", type=_integers, default=[], help=words)
    words = "seeds of the training and of the choice of labelled images (default: 0)"
    verb.add_argument("--seeds", metavar="0,1,2", type=_integers, default=[], help=words)
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help=SET)
    verb.add_argument("--no-prefect", action="store_true", help="run without Prefect: no flow runs, no retries")
    for kind, name in (("json", "JSON"), ("markdown", "Markdown")):
        words = f"write {name} to FILE instead of a table; - is stdout"
        verb.add_argument(f"--{kind}", metavar="FILE", type=Path, help=words)
    words = "write an HTML page with charts to FILE instead of a table"
    verb.add_argument("--html", metavar="FILE", type=Path, help=words)


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
    print(f"saved as a table and an HTML page in {record(comparison, options.workspace)}", file=sys.stderr)


def _compared(options: Namespace) -> "Comparison":
    from selftrain.flows.actions.compare import compare_methods, compare_runs

    if options.methods or options.labels or options.seeds:
        if len(options.words) != 1:
            raise ConfigError(
                f"found {len(options.words)} names; expected one recipe with --methods, --labels or --seeds, "
                "as in: selftrain compare quickstart --seeds 0,1"
            )
        grid = options.methods, options.labels, options.seeds or [0]
        return compare_methods(options.words[0], *grid, options.set, options.workspace, not options.no_prefect)
    if options.set:
        raise ConfigError(
            "found --set with runs, which are compared as they are; expected a recipe with --methods, "
            "--labels or --seeds"
        )
    return compare_runs(options.words, options.workspace)


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        print(text.rstrip("\n"))
        return
    path.write_text(text)
    print(f"wrote {path}", file=sys.stderr)
