"""A page's file: style, scripts, data and pictures in one HTML page that asks nobody for anything."""

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selftrain.ssl_tasks.report.collect import Links, report_data
from selftrain.ssl_tasks.report.data import ReportData
from selftrain.ssl_tasks.report.embedding import embed
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.runs import Run

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("page", "figures", "charts", "overview", "rounds", "corrections", "gallery", "lineage", "main")

# Scripts run by their digest alone, so text from data could not run even if it came to stand in the markup. Plot writes
# style attributes, whence 'unsafe-inline' for styles. Nothing may be fetched, framed, submitted or based elsewhere.
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<noscript>This page draws itself with JavaScript, which is off here. It loads nothing from anywhere.</noscript>
<main id="report"></main>
<script type="application/json" id="data">{data}</script>
<script>{library}</script>
<script>{script}</script>
</body>
</html>
"""


def write_report(run: Run, output: Path, links: Links | None = None) -> Path:
    """Writes a run's report to `output` and returns it. `links`: MLflow's pages by artifact digest and run id."""
    write_atomically(output, render(report_data(run, links)))
    return output


def render(data: ReportData) -> str:
    """The whole report."""
    return render_page(f"{data.run['id']} · selftrain", asdict(data), SCRIPTS)


def render_page(title: str, data: Any, scripts: Sequence[str]) -> str:
    """A page that some of our scripts draw from `data`."""
    library = (STATIC / "vendor" / "charts.min.js").read_text()
    script = (
        "(() => {\n'use strict';\n" + "\n".join((STATIC / f"{name}.js").read_text() for name in scripts) + "\n})();"
    )
    return PAGE.format(
        policy=POLICY.format(scripts=f"{source_digest(library)} {source_digest(script)}"),
        title=html.escape(title),
        style=(STATIC / "report.css").read_text(),
        data=embed(data),
        library=library,
        script=script,
    )


def source_digest(source: str) -> str:
    """A script's name in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
