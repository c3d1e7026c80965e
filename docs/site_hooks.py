"""Hooks of MkDocs: add the result files as pages, and replace links to other files of the repository by their names.

The pages are also read in the repository, where such links lead to the files themselves.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
RESULTS = "benchmarks/results"
OUTWARD = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the benchmarks' result files as pages."""
    for path in sorted((ROOT / RESULTS).glob("*.md")):
        page = File.generated(config, f"results/{path.name}", content=path.read_text())
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuses a page that would load anything from another server."""
    if found := re.search(
        r"<(?:script|img|iframe)[^>]* src=\W?https?://[^ >]*|<link[^>]* href=\W?https?://[^ >]*", output
    ):
        raise PluginError(f"{page.file.src_uri} would load from elsewhere: {found[0]}")
    return output


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites the links that lead out of docs/; one to a file that does not exist is an error."""

    def rewritten(link: re.Match[str]) -> str:
        words, target = link[1], link[2]
        if not (ROOT / target).exists():
            raise PluginError(f"{page.file.src_uri} links to {target}, which does not exist")
        if target.startswith(RESULTS):
            return f"[{words}](results/{Path(target).name})"
        return words if "`" in words else f"{words} (`{target}`)"

    return OUTWARD.sub(rewritten, markdown)
