"""Phrases that must not come back into what people read. `texts` yields what is scanned; add further sources there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PHRASES = {
    r"\b(nobody|somebody|everybody)\b": "name the person: you, someone who reviews",
    r"\binvent(s|ed|ing)?\b[^.|]{0,40}\blabels?\b|\blabels?\b[^.|]{0,40}\binvent(s|ed|ing)?\b": "pseudo-label",
    r"\b(say|says|said|call|called|labelled|answer|answers|answered|compute|computes|computed|trained|learns?|"
    r"behaves?|decides?|decided|saw|sees|does|did|goes) otherwise\b": "differently",
    r"\b(go|goes|going|gone|went) on\b": "continue, resume",
    r"\bcome[s]? in\b": "continue, resume",
    r"\banew\b": "again; recomputed",
    r"\bbelieved\b": "accepted",
    r"(?<!ground )\btruth\b(?! values)": "ground truth",
    r"\b(asked twice|twice is once|done once)\b": "idempotent, or safe to repeat",
    r"\bno run names\b|\bwhat no run\b": "not referenced by any run",
    r"\bcompare[sd]? with no ?(body|one)\b": "evaluated without a comparison",
    r"\bwaits? for its machine\b": "not yet measured on a GPU",
    r"\bhold(s)? (it|them|these lines|this|those) to\b": "a test checks",
    r"\b(shall|doth|thereof|therein|whence|wherefrom)\b": "will, of it, in it",
    r"\bthe most that\b": "at most",
    r"\bun?till? a person\b.*\bpresses\b": "until you press",
}
HEADLESS = re.compile(
    r"(?:^|[.:;!] |\| )(?P<sentence>(?:What|Who|Whom|Whoever|Whatever)\b(?! (?:is|are|was|were|does|do|did|can|should|"
    r"happens|survives)\b)[^?.|]*)(?P<end>[?.|]|$)",
    re.MULTILINE,
)
HEADLESS_CELL = re.compile(r"\| *(what|who|then|it says) *(?=\|)")


def texts() -> Iterator[tuple[str, str]]:
    """A place and its text: the README, CONTRIBUTING and the pages, generated ones too."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield str(page.relative_to(ROOT)), without_code(page.read_text())


def without_code(markdown: str) -> str:
    """The text without fenced blocks and inline code, each paragraph on one line."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "CODE", text)
    return re.sub(r"(?<=\S)\n(?=[^\s|#>*-])", " ", text)


@pytest.mark.parametrize(("place", "text"), [pytest.param(*one, id=one[0]) for one in texts()])
def test_no_phrase_that_was_banned_is_back(place: str, text: str) -> None:
    found = [
        f"{place}: “{text[max(0, match.start() - 30) : match.end() + 30].strip()}”; write: {instead}"
        for phrase, instead in PHRASES.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("place", "text"), [pytest.param(*one, id=one[0]) for one in texts()])
def test_no_sentence_begins_with_a_headless_clause(place: str, text: str) -> None:
    """“What a model takes images for” and “Who reads this” have no subject; a question with its mark is fine."""
    found = [match["sentence"] for match in HEADLESS.finditer(text) if match["end"] != "?"]
    found += [f"a column called “{match[1]}”" for match in HEADLESS_CELL.finditer(text)]
    assert not found, f"{place}: " + "; ".join(found)


@pytest.mark.parametrize(
    "bad",
    [
        "labelled otherwise by the round before",
        "It goes on from the last checkpoint.",
        "A number that nobody reads.",
        "The labels that the model before it invented.",
        "the images of which it knows the truth",
    ],
)
def test_the_phrases_are_found_where_they_stand(bad: str) -> None:
    assert any(re.search(phrase, bad, re.IGNORECASE) for phrase in PHRASES)


@pytest.mark.parametrize(
    "bad", ["What a model takes images for, with probabilities.", "Fine. Who may write here can lie."]
)
def test_headless_sentences_are_found(bad: str) -> None:
    assert [match for match in HEADLESS.finditer(bad) if match["end"] != "?"]


@pytest.mark.parametrize("good", ["What does it do? It trains.", "If not, otherwise: the ground truth is known."])
def test_good_sentences_pass(good: str) -> None:
    assert not [match for match in HEADLESS.finditer(good) if match["end"] != "?"]
    assert not any(re.search(phrase, good, re.IGNORECASE) for phrase in PHRASES)
