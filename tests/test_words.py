"""Phrases that must not come back into help texts, messages, docstrings, comments and the report's texts."""

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from selftrain.flows.cli.main import parser

ROOT = Path(__file__).parent.parent
CODE = [path for room in ("flows", "ssl_tasks", "models", "examples") for path in sorted((ROOT / room).rglob("*.py"))]
CODE += sorted((ROOT / "selftrain").glob("*.py"))
SCRIPTS = sorted((ROOT / "ssl_tasks" / "report" / "static").glob("*.js"))
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
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
    r"\bhold(s)? (it|them|these lines|this|those) to\b": "a test checks",
    r"\b(shall|therein|whence|wherefrom)\b": "will, must; in it; from which",
    r"\b(at|in) the most\b|\bthe most that\b": "at most",
    r"\btheir precision\b": "pseudo-label accuracy",
    r"\bpassed over\b": "ignored, skipped",
    r"\bhas other contents\b": "has changed",
    r"\ball \d+ rounds? done\b": "3 rounds done",
}
# "What it does" begins a question, or a clause without a main verb.
HEADLESS = re.compile(r"^(What|Who|Whom|Whose|Where|Which|How|Whatever)\b(?!.*\?$)")
FIRST_SENTENCE = re.compile(r"\A.*?(?:[.:;!?](?=\s|\Z)|\Z)", re.DOTALL)


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


def written(path: Path) -> list[tuple[str, str]]:
    """Everything that a person reads in a module."""
    return [*docstrings(path), *literals(path), *comments(path)]


def banned(texts: list[tuple[str, str]]) -> list[str]:
    """The places where a phrase stands that must not."""
    return [
        f"{place}: “{text[max(0, found.start() - 40) : found.end() + 40]}”; write: {instead}"
        for place, text in texts
        for phrase, instead in PHRASES.items()
        for found in re.finditer(phrase, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_phrase_that_was_banned_is_back_in_the_code(path: Path) -> None:
    found = banned(written(path))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("texts", [helps, scripts], ids=["help", "report and recipes"])
def test_no_phrase_that_was_banned_is_back_in_help_report_and_recipes(texts: object) -> None:
    assert callable(texts)
    found = banned(list(texts()))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_docstring_begins_with_a_sentence_that_has_a_subject(path: Path) -> None:
    found = [f"{place}: {text.splitlines()[0]}" for place, text in docstrings(path) if HEADLESS.match(first(text))]
    assert not found, "\n".join(found)


def first(text: str) -> str:
    """The first sentence of a text."""
    found = FIRST_SENTENCE.match(text)
    assert found is not None
    return " ".join(found[0].split())


def test_every_help_line_begins_with_a_sentence_that_has_a_subject() -> None:
    assert [f"{place}: {text}" for place, text in helps() if HEADLESS.match(first(text))] == []


@pytest.mark.parametrize("verb", parser().verbs())
def test_the_first_line_of_a_verbs_help_is_imperative(verb: str) -> None:
    """It begins with the verb's plain form: “Show …”, neither “Shows …” nor “The …”."""
    line = parser().verbs()[verb].description or ""
    assert re.match(r"[A-Z][a-z]+[ ,]", line)
    assert not re.match(r"(The|A|An|All|Every|Each|What|How|Why|[A-Z][a-z]+s) ", line)
    assert line.endswith(".")


@pytest.mark.parametrize(
    "bad",
    [
        "labels that nobody knows",
        "the labels that it invented",
        "labelled otherwise by the round before",
        "it goes on from its checkpoints",
        "artifacts that no run names",
        "stopped: all 1 rounds done",
        "10 images at the most",
    ],
)
def test_the_phrases_are_found(bad: str) -> None:
    assert banned([("here", bad)])


@pytest.mark.parametrize("bad", ["What a model takes images for.", "Who labelled it, and when", "How a run stands."])
def test_headless_sentences_are_found(bad: str) -> None:
    assert HEADLESS.match(first(bad))


@pytest.mark.parametrize("good", ["Returns what it found.", "Where is it?", "If not, otherwise: the run continues."])
def test_good_sentences_pass(good: str) -> None:
    assert not HEADLESS.match(first(good))
    assert not banned([("here", good)])
