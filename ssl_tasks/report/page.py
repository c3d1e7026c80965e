"""Writes a report or a comparison as one HTML file with its style, scripts, data and pictures.

The page loads nothing from elsewhere. Its values are read from the run's records and artifacts.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import pyarrow as pa

from selftrain.ssl_tasks.pseudo_labels.engine import open_spilling
from selftrain.ssl_tasks.pseudo_labels.views import RoundTables, RunTables, view_queries
from selftrain.ssl_tasks.report.data import Gallery, ReportData, RoundPage, Stage
from selftrain.ssl_tasks.report.gallery import NO_PICTURES, Picks, open_gallery, pick
from selftrain.ssl_tasks.report.pictures import embed, size
from selftrain.ssl_tasks.report.rounds import round_page, thresholds_of
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.runs import RoundArtifacts, Run, advice, tables_folder

if TYPE_CHECKING:
    import pandas as pd


MEMORY_GB = 1.0
MOST_BYTES = 14_500_000  # size of the data in the page; with style and scripts, the page stays below 15 MB
MOST_GALLERY_BYTES = 12_000_000
SHOWN_OF_RUN = ("id", "name", "state", "stopped", "created", "finished", "tracked")
Links = Mapping[str, str]


def report_data(run: Run, links: Links | None = None) -> ReportData:
    """Returns the contents of a run's report, finished or not. `links`: MLflow's pages by artifact digest and run
    id."""
    info = run.info
    shown = {name: info[name] for name in SHOWN_OF_RUN if name in info}
    shown["advice"] = advice(run)
    shown["link"] = (links or {}).get(run.id)
    stages = read_stages(run, links or {})
    if run.dataset is None:
        empty = Gallery((), NO_PICTURES, 0)
        return ReportData(shown, (), {}, stages, (), None, empty)
    facts = json.loads((tables_folder(run.dataset) / "info.json").read_text())
    rounds = [one for one in run.rounds() if one.model is not None or one.predictions is not None]
    counts = {name: entry["images"] for name, entry in facts["counts"].items()}
    room = MOST_BYTES - size([asdict(stage) for stage in stages])
    pages, gallery = look(run, rounds, tuple(facts["counts"]["labeled"]["per_class"]), room)
    best = best_round(pages)
    return ReportData(shown, tuple(facts["classes"]), counts, stages, pages, best, gallery)


def look(
    run: Run, rounds: list[RoundArtifacts], labeled: tuple[int, ...], room: int
) -> tuple[tuple[RoundPage, ...], Gallery]:
    """Returns the pages of the rounds and, in the remaining bytes, the gallery."""
    dataset = run.dataset
    assert dataset is not None
    tables = RunTables(
        tables_folder(dataset),
        [
            RoundTables(
                one.round,
                tables_folder(one.predictions),
                None if one.selection is None else tables_folder(one.selection),
            )
            for one in rounds
            if one.predictions is not None
        ],
    )
    picks, pages = Picks({}, {}), []
    with open_spilling(MEMORY_GB) as db:
        define_views(db, tables, rounds, len(labeled))
        of_round = {one.round: one for one in tables.rounds}
        for one in rounds:
            pages.append(round_page(one, labeled, of_round.get(one.round), db, len(rounds)))
            if one.round in of_round:
                pick(db, tables, one.round, len(labeled), picks)
        candidates = next((page.candidates for page in reversed(pages) if page.candidates is not None), 0)
        left = min(MOST_GALLERY_BYTES, room - size([asdict(page) for page in pages]))
        gallery = open_gallery(db, run, tables, picks, candidates, left)
    return tuple(pages), gallery


def define_views(
    connection: duckdb.DuckDBPyConnection, tables: RunTables, rounds: list[RoundArtifacts], num_classes: int
) -> None:
    """Creates the run's views and the table `thresholds`."""
    if tables.rounds:
        for name, query in view_queries(tables).items():
            connection.execute(f"CREATE VIEW {name} AS {query}")
    lines = [
        (one.round, label, threshold)
        for one in rounds
        if one.predictions is not None
        for label, threshold in enumerate(thresholds_of(one) or [None] * num_classes)
    ]
    kinds = {"round": pa.int32(), "label": pa.int32(), "threshold": pa.float32()}
    columns = zip(*lines, strict=True) if lines else [[], [], []]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds.values(), strict=True)]
    connection.register("stated", pa.table(dict(zip(kinds, arrays, strict=True))))
    connection.execute("CREATE TEMP TABLE thresholds AS FROM stated")
    connection.unregister("stated")


def best_round(pages: tuple[RoundPage, ...]) -> int | None:
    """Returns the round that is best on validation, the first of equals; the test images are never used."""
    known = [page for page in pages if page.validation is not None]
    return max(known, key=lambda page: (page.validation.accuracy, -page.round)).round if known else None  # type: ignore[union-attr]


def read_stages(run: Run, links: Links) -> tuple[Stage, ...]:
    """Returns the stages in the order of the run, each with the origin of its inputs."""
    records = run.stages()
    manifests: dict[str, Mapping[str, Any]] = {}
    for record in records:
        found = run.artifact(record.name)
        manifests[record.name] = found.manifest if found is not None else {}
    # By contents: after a change upstream, the same contents have another key and are still the same input.
    makers = {(m["stage"], m["digest"]): name for name, m in reversed(manifests.items()) if m}
    return tuple(
        Stage(
            name=record.name,
            stage=record.stage,
            round=record.round,
            state=record.state,
            wall_seconds=record.seconds,
            cost_seconds=manifests[record.name].get("seconds"),
            key=record.key,
            digest=record.digest,
            reason=record.reason,
            inputs=tuple(
                (role, makers[one["stage"], one["digest"]])
                for role, one in manifests[record.name].get("inputs", {}).items()
                if (one["stage"], one["digest"]) in makers
            ),
            settings=manifests[record.name].get("settings", {}),
            summary=manifests[record.name].get("summary", {}),
            link=links.get(record.digest),
        )
        for record in records
    )


STATIC = Path(__file__).parent / "static"
SCRIPTS = ("page", "figures", "charts", "overview", "rounds", "corrections", "gallery", "lineage", "main")

# Only scripts with these digests run, so text from data could not run even inside the markup. Styles need
# 'unsafe-inline', because Plot writes style attributes. Nothing may be fetched, framed or submitted.
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
<noscript>This page needs JavaScript, which is off here. It loads nothing from the network.</noscript>
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
    """Returns the whole report as HTML."""
    return render_page(f"{data.run['id']} · selftrain", asdict(data), SCRIPTS)


def render_page(title: str, data: Any, scripts: Sequence[str]) -> str:
    """Returns a page that the given scripts draw from `data`."""
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
    """Returns a script's digest for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


COMPARISON_SCRIPTS = ("page", "figures", "compare")


@dataclass(frozen=True)
class Point:
    """One run behind a row of the table."""

    run: str
    seed: int | None
    validation: float | None
    test: float | None
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """A comparison: `table` has a row per run, or per method and label budget; `points` are the runs of each row."""

    kind: Literal["runs", "methods"]
    title: str
    asked: Mapping[str, str]
    split: Literal["test", "validation"]  # the split on whose images models are compared
    table: "pd.DataFrame"
    points: tuple[tuple[Point, ...], ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of the table; unknown values are None."""
        known = self.table.astype(object).where(self.table.notna(), None)
        return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def render_comparison(comparison: Comparison) -> str:
    """Returns the page of a comparison as one HTML file."""
    rows = [
        {**row, "points": [asdict(point) for point in points]}
        for row, points in zip(comparison.rows(), comparison.points, strict=True)
    ]
    data = {name: getattr(comparison, name) for name in ("kind", "title", "asked", "split")}
    return render_page(f"{comparison.title} · selftrain", {**data, "rows": rows}, COMPARISON_SCRIPTS)
