"""The pages of docs/ as a site: the navigation has all of them, links lead somewhere, generated pages are up to date.

`make docs` builds the site; nothing here needs its generator.
"""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
GENERATED = ("configuration.md", "commands.md", "api.md")
FEWEST_LETTERS = 8  # a shorter piece of a message is found anywhere


def site() -> dict[str, object]:
    """The site's settings."""
    settings: dict[str, object] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    return settings


def named(navigation: object) -> list[str]:
    """Every page that a navigation names."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    assert not isinstance(parts, str)
    return [page for part in parts for page in named(part)]  # type: ignore[attr-defined]


def test_the_navigation_names_every_page_once() -> None:
    assert sorted(named(site()["nav"])) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}, which is not a heading there"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ("index.md",)], ids=lambda page: page.stem)
def test_every_page_is_found_from_the_start_page(page: Path) -> None:
    assert f"({page.name})" in (DOCS / "index.md").read_text()


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_as_its_generator_writes_it(name: str) -> None:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (DOCS / name).read_text() == generator.pages()[name], "run `python docs/reference.py`"


def test_every_setting_has_a_meaning() -> None:
    """A limit alone, such as `≥ 0`, does not say what a setting does."""
    rows = re.findall(r"^\| `(\w+)`°? \|.*\| ([^|]*) \|$", (DOCS / "configuration.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 200
    assert not [name for name, meaning in rows if not re.sub(r"[≥>≤<] [\d.e+-]+(; )?", "", meaning).strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named_files = re.findall(
        r"`((?:flows|ssl_tasks|models|configs|tests|benchmarks|docs|examples)/[\w/.-]+)`", prose(page)
    )
    assert not [path for path in named_files if not (ROOT / path).exists()]


@functools.cache
def code_texts() -> str:
    """Every text in the code; the values of f-strings are `…`."""
    found = []
    for package in ("flows", "ssl_tasks", "models"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_every_message_of_the_faq_exists_in_the_code() -> None:
    messages = re.findall(r"^\| `([^`]+)` \|", (DOCS / "faq.md").read_text(), flags=re.MULTILINE)
    assert len(messages) >= 10
    for message in messages:
        pieces = [piece.strip(" '") for piece in message.split("…")]
        assert max(map(len, pieces)) >= FEWEST_LETTERS, message
        lost = [piece for piece in pieces if len(piece) >= FEWEST_LETTERS and piece not in code_texts()]
        assert not lost, f"docs/faq.md explains a message that the code does not have: {lost}"
