"""The template for a person's own images, filled in from what is found there."""

import json
import re
from pathlib import Path

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.recipe import BUILT_IN
from selftrain.ssl_tasks.settings.run_config import run_name
from selftrain.ssl_tasks.store.artifacts import write_atomically

TEMPLATE = BUILT_IN / "image_folder.yaml"
LARGE_SIDE = 96  # beyond it, networks for small images are slow


def write_recipe(data: Path, output: Path, follow_links: bool = False) -> list[str]:
    """Writes a recipe that reads `data`; returns what was found, line by line. Never overwrites a file."""
    from selftrain.ssl_tasks.data.survey.inspect_folder import suggest_settings

    if output.exists():
        raise ConfigError(f"{output} exists already; name another file with --output")
    found = suggest_settings(data, follow_links)
    source = {
        name: str(value.absolute()) if isinstance(value, Path) else value
        for name, value in found.settings.source.model_dump(exclude_defaults=True).items()
    }
    source = {"name": found.settings.source.name, **source}
    size = min(max(32, found.sides[1]), LARGE_SIDE) if found.sides else 32
    text = TEMPLATE.read_text()
    for setting, value in (
        ("name", json.dumps(run_name(data.absolute().stem, "images"))),  # in quotes: YAML takes 2024 for a number
        ("  source", json.dumps(source, ensure_ascii=False)),
        ("  image_size", str(size)),
    ):
        line = re.search(rf"^{setting}: .*$", text, flags=re.MULTILINE)
        assert line is not None, f"the template has no {setting.strip()}"
        text = text.replace(line.group(), f"{setting}: {value}", 1)
    write_atomically(output, text)
    lines = [f"{count:,} images {split}" for split, count in sorted(found.splits.items())]
    lines += [f"class {label}: {count:,} labels" for label, count in found.labels.items()][:20]
    if found.sides:
        lines.append(f"shorter sides {found.sides[0]} to {found.sides[2]} pixels; images will be resized to {size}")
    return [*lines, *found.notes]
