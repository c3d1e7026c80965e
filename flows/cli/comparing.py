"""The verb compare: runs side by side, or methods × label budgets × seeds."""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.flows.cli.labelling import check_writable
from selftrain.flows.cli.verb import Verbs
from selftrain.flows.tables import print_table
from selftrain.ssl_tasks.errors import ConfigError

if TYPE_CHECKING:
    from selftrain.ssl_tasks.report.comparison import Comparison

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
    from selftrain.ssl_tasks.report.comparison import render_comparison

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


VERBS = [add_compare]
