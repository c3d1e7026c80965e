"""The verb compare: runs side by side, or methods × label budgets × seeds."""

from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from flows.commands.labelling import check_writable
from flows.commands.tables import print_table, printable, seconds, share
from flows.commands.verb import Verbs
from ssl_tasks.errors import ConfigError

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


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _integers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise ArgumentTypeError(f"found {text!r}, expected whole numbers such as 0,1,2") from error


def _compare(options: Namespace) -> None:
    from flows.compare import compare_methods, compare_runs

    check_writable(options.json, options.markdown)
    if options.methods or options.labels or options.seeds:
        if len(options.words) != 1:
            raise ConfigError(f"found {len(options.words)} recipes; expected one with --methods, --labels and --seeds")
        grid = options.methods, options.labels, options.seeds or [0]
        table = compare_methods(options.words[0], *grid, options.set, options.workspace, not options.no_prefect)
    elif options.set:
        raise ConfigError(
            "--set changes a recipe, and runs are compared as they are; add --methods, --labels or --seeds"
        )
    else:
        table = compare_runs(options.words, options.workspace)
    rows = [shown_row(row) for row in table.astype(object).where(table.notna(), None).to_dict("records")]
    if options.json:
        _write(options.json, table.to_json(orient="records"))
    elif options.markdown:
        _write(options.markdown, as_markdown(rows))
    else:
        print_table(rows, right=[name for name in rows[0] if name not in WORDS])


def shown_row(row: dict[Any, Any]) -> dict[str, str]:
    """A row for a person: accuracies with interval or ± std, the difference in points."""
    shown = {name: str(row[name]) for name in ("run", "round", "method", "labels", "seeds") if name in row}
    for split in ("validation", "test"):
        text = share(row[split])
        if row.get(f"{split}_low") is not None:
            text += f" ({100 * row[f'{split}_low']:.1f} … {100 * row[f'{split}_high']:.1f})"
        if row.get(f"{split}_std") is not None:
            text += f" ± {100 * row[f'{split}_std']:.1f}"
        shown[split] = text
    points = ""
    if row["difference"] is not None:
        points = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} … {100 * row['high']:+.1f})"
    shown |= {"points against the first": points, "McNemar p": "" if row["p"] is None else f"{row['p']:.3g}"}
    return {**shown, "time": seconds(row["seconds"]), **({"note": row["note"] or ""} if "note" in row else {})}


def as_markdown(rows: list[dict[str, str]]) -> str:
    """The rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _write(path: Path, text: str) -> None:
    print(text.rstrip("\n")) if str(path) == "-" else path.write_text(text)


VERBS = [add_compare]
