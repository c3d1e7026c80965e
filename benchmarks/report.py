"""Writes the results of every benchmark: a table, a file with the machine, and one JSON object as the last line."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "albumentations", "numpy", "pandas", "pyarrow", "duckdb", "prefect", "mlflow")


def publish(name: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], quick: bool) -> None:
    """Prints `rows` as a table and `summary` (figures, `target`, `meets`, seeds) as JSON; a full run is put on file."""
    table = markdown_table(rows)
    print(table)
    whole = {"name": name, "quick": quick, **summary}
    if not quick:
        about = {"machine": machine(), "versions": versions(), "commit": commit()}
        RESULTS.mkdir(exist_ok=True)
        record = json.dumps({**whole, "rows": [dict(row) for row in rows], **about}, indent=1)
        (RESULTS / f"{name}.json").write_text(record + "\n")
        (RESULTS / f"{name}.md").write_text(markdown_page(name, table, whole, about))
    print(json.dumps(whole), flush=True)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table that reads well as plain text too; columns in the order of their first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def markdown_page(name: str, table: str, summary: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The table, the figures, and where they were measured."""
    figures = "\n".join(f"- {key}: {_cell(value)}" for key, value in summary.items() if key not in {"name", "quick"})
    where = "\n".join(f"- {key}: {_cell(value)}" for key, value in about.items())
    return f"# {name}\n\n{table}\n\n{figures}\n\nMeasured on\n\n{where}\n"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def machine() -> dict[str, Any]:
    """Describes the machine that the figures depend on, without naming the host."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.partition(":")[2].strip() for line in info.open() if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory, 1),
        "gpu": gpu(),
        "system": platform.system(),
    }


def gpu() -> str | None:
    """The first accelerator's name."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def versions() -> dict[str, str]:
    """Python and the packages that are installed of those that matter."""
    installed = {item.metadata["Name"].lower(): item.version for item in metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}


def commit() -> str | None:
    """The revision that was measured, marked where files differ from it; results on file are not what is measured."""
    git = ["git", "-C", str(RESULTS.parent)]
    found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changes = [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude){RESULTS}"]
    changed = subprocess.run(changes, capture_output=True, text=True, check=False).stdout.strip()
    revision = found.stdout.strip()
    return revision + "-dirty" * bool(changed) if revision else None
