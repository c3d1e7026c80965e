"""The tables of docs/augmentation.md: each operation's argument at some levels, ours beside the official codes'.

Ours comes from the code, the official one from formulas written again in the tests. A cell with one number says that
both agree; "a (b)" is ours and the official one. After a change:
`python -m tests.data.test_augmentation_table --accept`.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from selftrain.ssl_tasks.data.views.augmentation import OPERATIONS
from selftrain.ssl_tasks.data.views.ctaugment import LEVELED
from tests.data.test_randaugment import FORMULAS, OPERATIONS_OF, SHIFTED, argument

PAGE = Path(__file__).parents[2] / "docs" / "augmentation.md"
WORDS = {
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), "factor"),
    **dict.fromkeys(("shear_x", "shear_y"), "± pixels a row"),
    **dict.fromkeys(SHIFTED, "± pixels of 32"),
    "rotate": "± degrees",
    "posterize": "bits kept",
    "solarize": "inverted from, of 256",
    "solarize_add": "added below 128",
    "cutout": "side, pixels of 32",
    **dict.fromkeys(("autocontrast", "equalize", "invert"), "no argument"),
    "identity": "no argument",
}
# The range that FixMatch's paper, TorchSSL and USB have.
PRINTED = {
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.05, 0.95)),
    **dict.fromkeys(("shear_x", "shear_y"), (-0.3, 0.3)),
    **dict.fromkeys(SHIFTED, (-9.6, 9.6)),
    "rotate": (-30, 30),
    "posterize": (4, 8),
    "solarize": (0, 256),
}
# CTAugment's argument at a level in [0, 1) on 32×32 pixels: FixMatch's repository, and ReMixMatch's where it differs.
Formula = Callable[[float], float]
LEARNT: dict[str, tuple[str, Formula]] = {
    **dict.fromkeys(("autocontrast", "equalize", "invert"), ("share of the changed image", lambda level: level)),
    **dict.fromkeys(("blur", "smooth"), ("share of the smoothed image", lambda level: level)),
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), ("factor", lambda level: 0.1 + 1.9 * level)),
    "cutout": ("side, pixels of 32", lambda level: 2 * ((1 + int(level * 32 * 0.499)) // 2)),
    "posterize": ("bits kept", lambda level: 1 + int(level * 7.999)),
    "rescale": ("margin, pixels of 32", lambda level: 32 * 0.25 * level),
    "rotate": ("degrees", lambda level: round((2 * level - 1) * 45)),
    **dict.fromkeys(("shear_x", "shear_y"), ("pixels a row", lambda level: (2 * level - 1) * 0.3)),
    "solarize": ("inverted from, of 256", lambda level: int(level * 255.999)),
    **dict.fromkeys(SHIFTED, ("pixels of 32", lambda level: (2 * level - 1) * 0.3)),
}
REMIXMATCH: dict[str, Formula] = {"rescale": lambda level: 0.25 * level}
LEARNT_UNITS = {"cutout": 32, "rescale": 32, "solarize": 256, **dict.fromkeys(SHIFTED, 32)}


def number(value: float) -> str:
    """As short as it can be."""
    return f"{value:.3g}".replace("-0", "0") if abs(value) < 1e-9 else f"{value:.3g}"


def cell(ours: float, *official: float) -> str:
    """One number where all agree to the byte, else ours and in brackets the official ones."""
    theirs = [number(value) for value in official]
    return number(ours) if set(theirs) == {number(ours)} else f"{number(ours)} ({', '.join(dict.fromkeys(theirs))})"


def overflown(name: str, value: float) -> float:
    """Returns the values of the TensorFlow codes: their thresholds are bytes, and a byte is shifted by 0 to 7 bits."""
    if name == "solarize":
        return value % 256
    return (1 if not 1 <= value <= 8 else value) if name == "posterize" else value


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """As Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def official_table(strong: str, levels: Iterable[int]) -> str:
    """Levels of an official code on 32×32 pixels."""
    levels = list(levels)
    rows = []
    for name in sorted(OPERATIONS_OF[strong]):
        if WORDS[name] == "no argument":
            rows.append([f"`{name}`", WORDS[name], *[""] * len(levels)])
            continue
        theirs = [float(FORMULAS[strong][name](level)) for level in levels]
        if strong == "randaugment":
            theirs = [overflown(name, value) for value in theirs]
        cells = [cell(argument(strong, name, level), value) for level, value in zip(levels, theirs, strict=True)]
        rows.append([f"`{name}`", WORDS[name], *cells])
    return table(["operation", "argument", *[f"level {level}" for level in levels]], rows)


def printed_table() -> str:
    """The ranges of `randaugment` with random magnitudes."""
    rows = []
    for name, operation in sorted(OPERATIONS.items()):
        unit = {"solarize": 256, **dict.fromkeys(SHIFTED, 32)}.get(name, 1)
        ours = (operation.low * unit, operation.high * unit)
        cells = [cell(end, official) for end, official in zip(ours, PRINTED.get(name, (0, 0)), strict=True)]
        rows.append([f"`{name}`", WORDS[name].replace("± ", ""), *(cells if name in PRINTED else ["", ""])])
    return table(["operation", "argument", "from", "to"], rows)


def learnt_table() -> str:
    """CTAugment's."""
    levels, rows = (0.0, 0.25, 0.5, 0.75, 0.99), []
    for name, leveled in sorted(LEVELED.items()):
        if name == "identity":
            rows.append([f"`{name}`", "no argument", *[""] * len(levels)])
            continue
        words, formula = LEARNT[name]
        official = [formula, *([REMIXMATCH[name]] if name in REMIXMATCH else [])]
        unit = LEARNT_UNITS.get(name, 1)
        cells = [cell(leveled.argument(level) * unit, *(each(level) for each in official)) for level in levels]
        rows.append([f"`{name}`", words, *cells])
    return table(["operation", "argument", *[f"level {level:g}" for level in levels]], rows)


TABLES = {
    "fixmatch": official_table("uda", (1, 3, 5, 7, 9)),
    "randaugment": official_table("randaugment", (5, 10, 16, 27)),
    "printed": printed_table(),
    "ctaugment": learnt_table(),
}


def filled(page: str) -> str:
    """The page with its tables as they are now."""
    for name, text in TABLES.items():
        begin, end = f"<!-- table {name} -->\n", "\n<!-- end -->"
        head, rest = page.split(begin)
        page = head + begin + text + end + rest.split(end, 1)[1]
    return page


def test_the_pages_tables_are_what_the_code_does() -> None:
    page = PAGE.read_text()
    assert page == filled(page), "run `python -m tests.data.test_augmentation_table --accept`"


def test_a_cell_shows_where_ours_and_the_official_argument_differ() -> None:
    assert cell(16.0, 16) == "16"
    assert cell(256, 153.0) == "256 (153)"
    assert cell(8, 8.0, 0.25) == "8 (8, 0.25)"


if __name__ == "__main__":
    if sys.argv[1:] != ["--accept"]:
        sys.exit("expected --accept: write the tables of docs/augmentation.md")
    PAGE.write_text(filled(PAGE.read_text()))
