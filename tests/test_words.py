"""One list of phrases that must not come back into help, messages, docstrings, comments, report, README and docs."""

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selftrain.flows.cli.main import parser

ROOT = Path(__file__).parent.parent
CODE = [path for room in ("flows", "ssl_tasks", "models", "examples") for path in sorted((ROOT / room).rglob("*.py"))]
CODE += sorted((ROOT / "selftrain").glob("*.py"))
SCRIPTS = sorted((ROOT / "ssl_tasks" / "report" / "static").glob("*.js"))
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PHRASES = {
    r"\b(nobody|somebody|everybody|whoever|whom)\b": "name the person or the process",
    r"\binvent(s|ed|ing)?\b[^.|]{0,40}\blabels?\b|\blabels?\b[^.|]{0,40}\binvent(s|ed|ing)?\b": "pseudo-label",
    r"\b(say|says|said|call|called|labelled|answer|answers|answered|compute|computes|computed|trained|learns?|behaves?|"
    r"decides?|decided|saw|sees|does|did|goes) otherwise\b": "differently",
    r"\b(go|goes|going|gone|went) on\b": "continue, resume",
    r"\banew\b": "again; recomputed",
    r"\bbelieved\b": "accepted",
    r"\b(asked twice|twice is once|done once)\b": "idempotent, or safe to repeat",
    r"\bno run names\b|\bwhat no run\b": "not referenced by any run",
    r"\bcompare[sd]? with no ?(body|one)\b": "evaluated without a comparison",
    r"\bwaits? for its machine\b": "not yet measured on a GPU",
    r"\bhold(s)? (it|them|these lines|this|those) to\b": "a test checks",
    r"\b(shall|doth|thereof|therein|whence|wherefrom)\b": "will, must; of it; in it; from which",
    r"\b(at|in) the most\b|\bthe most that\b": "at most",
    r"\btheir precision\b": "pseudo-label accuracy",
    r"\bpassed over\b": "ignored, skipped",
    r"\bhas other contents\b": "has changed",
    r"\ball \d+ rounds? done\b": "3 rounds done",
    r"\bun?till? a person\b.*\bpresses\b": "until you press",
    r"\b(is|are) looked at\b": "is read, is checked",
    r"\bto and fro\b": "are sent",
    r"\bin the making\b": "writes, makes",
    r"\band its kin\b": "and its variants",
}
# These are also words of column names and of SQL, so that they are looked for in prose only.
PROSE_PHRASES = {
    r"(?<!ground )(?<!, )(?<!\()\btruth\b(?! values)": "ground truth",
    r"\bcome[s]? in\b": "continue, resume, are added",
}
# "What it does" begins a question, or a clause without a main verb; "Of each class" needs the sentence before it.
HEADLESS_START = re.compile(
    r"^(?:(?:What|Who|Whom|Whose|Where|Which|How|Whatever)\b(?!.*\?$)|(?:Of|By|From|Until|Whether|As|About|Whoever)\b)"
)
HEADLESS = re.compile(
    r"(?:^|[.:;!] |\| )(?P<sentence>(?:What|Who|Whom|Whoever|Whatever)\b(?! (?:is|are|was|were|does|do|did|can|should|"
    r"happens|survives)\b)[^?.|]*)(?P<end>[?.|]|$)",
    re.MULTILINE,
)
HEADLESS_CELL = re.compile(r"\| *(what|who|then|it says) *(?=\|)")
FIRST_SENTENCE = re.compile(r"\A.*?(?:[.:;!?](?=\s|\Z)|\Z)", re.DOTALL)
Texts = list[tuple[str, str]]


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a module, its classes and its functions, each with its place."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text


def literals(path: Path) -> Iterator[tuple[str, str]]:
    """The texts of a module's string literals, docstrings left out; each replacement field is `…`."""
    tree = ast.parse(path.read_text())
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        if " " in text.strip():
            yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def comments(path: Path) -> Iterator[tuple[str, str]]:
    """The comments of a module, consecutive lines of them as one text."""
    before, texts = -1, list[tuple[int, str]]()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("# ")
            texts[-1:] = (
                [(texts[-1][0], f"{texts[-1][1]} {words}")]
                if texts and token.start[0] == before + 1
                else [*texts[-1:], (token.start[0], words)]
            )
            before = token.start[0]
    yield from ((f"{path.relative_to(ROOT)}:{line}", text) for line, text in texts)


def helps() -> Iterator[tuple[str, str]]:
    """Every text of the command line's help, argument by argument."""
    top = parser()
    for name, one in {"selftrain": top, **top.verbs()}.items():
        for text in (one.description, one.epilog, one.usage):
            yield name, text or ""
        yield from ((f"{name} {action.dest}", action.help) for action in one._actions if speaks(action))


def speaks(action: argparse.Action) -> bool:
    """Whether --help shows this argument."""
    return bool(action.help) and action.help != argparse.SUPPRESS


def scripts() -> Iterator[tuple[str, str]]:
    """The lines of the report's scripts, and the comments of recipes."""
    for path in (*SCRIPTS, *RECIPES):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            text = line if path.suffix == ".js" else line.partition("#")[2]
            yield f"{path.relative_to(ROOT)}:{number}", text


def page_texts(path: Path) -> Texts:
    """A page as one text."""
    return [(str(path.relative_to(ROOT)), without_code(path.read_text()))]


def without_code(markdown: str) -> str:
    """The text without fenced blocks and inline code, each paragraph on one line."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "CODE", text)
    return re.sub(r"(?<=\S)\n(?=[^\s|#>*-])", " ", text)


def banned(texts: Texts, phrases: dict[str, str] = PHRASES) -> list[str]:
    """The places where a phrase stands that must not."""
    return [
        f"{place}: “{text[max(0, found.start() - 40) : found.end() + 40]}”; write: {instead}"
        for place, text in texts
        for phrase, instead in phrases.items()
        for found in re.finditer(phrase, text, re.IGNORECASE)
    ]


def first(text: str) -> str:
    """The first sentence of a text."""
    found = FIRST_SENTENCE.match(text)
    assert found is not None
    return " ".join(found[0].split())


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_phrase_is_in_the_code(path: Path) -> None:
    prose = [*docstrings(path), *comments(path)]
    found = banned([*prose, *literals(path)])
    found += banned([(place, without_code(text)) for place, text in prose], PROSE_PHRASES)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("texts", [helps, scripts], ids=["help", "report and recipes"])
def test_no_banned_phrase_is_in_help_report_and_recipes(texts: Callable[[], Iterator[tuple[str, str]]]) -> None:
    found = banned(list(texts()))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_phrase_is_in_a_page(path: Path) -> None:
    found = banned(page_texts(path), PHRASES | PROSE_PHRASES)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_sentence_of_a_page_has_a_subject(path: Path) -> None:
    """“What a model takes images for” and “Who reads this” have no subject; a question with its mark is fine."""
    ((place, text),) = page_texts(path)
    found = [match["sentence"] for match in HEADLESS.finditer(text) if match["end"] != "?"]
    found += [f"a column called “{match[1]}”" for match in HEADLESS_CELL.finditer(text)]
    assert not found, f"{place}: " + "; ".join(found)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_docstring_begins_with_a_sentence_that_has_a_subject(path: Path) -> None:
    found = [
        f"{place}: {text.splitlines()[0]}" for place, text in docstrings(path) if HEADLESS_START.match(first(text))
    ]
    assert not found, "\n".join(found)


def test_every_help_line_begins_with_a_sentence_that_has_a_subject() -> None:
    assert [f"{place}: {text}" for place, text in helps() if HEADLESS_START.match(first(text))] == []


@pytest.mark.parametrize("verb", parser().verbs())
def test_the_first_line_of_a_verbs_help_is_imperative(verb: str) -> None:
    """It begins with the verb's plain form: “Show …”, neither “Shows …” nor “The …”."""
    line = parser().verbs()[verb].description or ""
    assert re.match(r"[A-Z][a-z]+,? ", line)
    assert not re.match(r"(The|A|An|All|Every|Each|What|How|Why|[A-Z][a-z]+s) ", line)
    assert line.endswith(".")


@pytest.mark.parametrize(
    "bad",
    [
        "labels that nobody knows",
        "the labels that it invented",
        "The labels that the model before it invented.",
        "labelled otherwise by the round before",
        "it goes on from its checkpoints",
        "artifacts that no run names",
        "stopped: all 1 rounds done",
        "10 images at the most",
        "the images of which it knows the truth",
        "one table in the making",
    ],
)
def test_banned_phrases_are_found(bad: str) -> None:
    assert banned([("here", bad)], PHRASES | PROSE_PHRASES)


@pytest.mark.parametrize(
    "bad", ["What a model takes images for.", "Who labelled it, and when", "How a run stands.", "Of each class."]
)
def test_first_sentences_without_a_subject_are_found(bad: str) -> None:
    assert HEADLESS_START.match(first(bad))


@pytest.mark.parametrize(
    "bad", ["What a model takes images for, with probabilities.", "Fine. Who may write here can lie."]
)
def test_sentences_without_a_subject_are_found_in_a_page(bad: str) -> None:
    assert [match for match in HEADLESS.finditer(bad) if match["end"] != "?"]


@pytest.mark.parametrize(
    "good",
    [
        "Returns what it found.",
        "Where is it?",
        "What does it do? It trains.",
        "If not, otherwise: the run continues.",
        "If not, otherwise: the ground truth is known.",
    ],
)
def test_good_sentences_pass(good: str) -> None:
    assert not HEADLESS_START.match(first(good))
    assert not [match for match in HEADLESS.finditer(good) if match["end"] != "?"]
    assert not banned([("here", good)], PHRASES | PROSE_PHRASES)
