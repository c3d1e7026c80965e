"""Runs or methods side by side: the values of a comparison, and its page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from selftrain.ssl_tasks.report.page import render_page

if TYPE_CHECKING:
    import pandas as pd

SCRIPTS = ("page", "figures", "compare")


@dataclass(frozen=True)
class Point:
    """One run behind a line of the table."""

    run: str
    seed: int | None
    validation: float | None
    test: float | None
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """A line of `table` for each run, or for each method and label budget; its runs stand in `points`."""

    kind: Literal["runs", "methods"]
    title: str
    asked: Mapping[str, str]
    split: Literal["test", "validation"]  # where models are compared image by image
    table: "pd.DataFrame"
    points: tuple[tuple[Point, ...], ...]

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the table; what is not known is None."""
        known = self.table.astype(object).where(self.table.notna(), None)
        return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def render_comparison(comparison: Comparison) -> str:
    """One page that needs nothing else."""
    rows = [
        {**row, "points": [asdict(point) for point in points]}
        for row, points in zip(comparison.rows(), comparison.points, strict=True)
    ]
    data = {name: getattr(comparison, name) for name in ("kind", "title", "asked", "split")}
    return render_page(f"{comparison.title} · selftrain", {**data, "rows": rows}, SCRIPTS)
