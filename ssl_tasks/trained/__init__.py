"""Handles trained models: files, cards, predictions and exports. This module only checks and copies files."""

import json
import shutil
from pathlib import Path

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import StageResult
from selftrain.ssl_tasks.store.artifacts import digest_file, digest_json

WEIGHTS, CARD = "model.safetensors", "model.json"
BASE = "weights.safetensors"  # the weights that a model with a difference is based on


def require_trained(folder: Path) -> None:
    """Raises ConfigError if the folder holds no model."""
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise ConfigError(f"given_teacher: {folder} holds no {name}; expected a folder with {WEIGHTS} and {CARD}")


def trained_digest(folder: Path) -> str:
    """Returns the digest of a model's weights and card; raises ConfigError if the folder holds no model."""
    require_trained(folder)
    return digest_json({name: digest_file(folder / name) for name in (WEIGHTS, CARD)})


def copy_trained(folder: Path, output: Path) -> StageResult:
    """Copies a model's two files, made whole if they hold a difference, and returns its summary."""
    card = json.loads((folder / CARD).read_text())
    if isinstance(card, dict) and "base" in card:
        from selftrain.ssl_tasks.trained.model import write_whole

        write_whole(folder, output)
    else:
        for name in (WEIGHTS, CARD):
            shutil.copyfile(folder / name, output / name)
    return StageResult(summary={"given": True, "card": json.loads((output / CARD).read_text())})
