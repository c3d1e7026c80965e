"""Looks at every path that a recipe names, before anything starts: a mistyped one costs no time and leaves no run."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from selftrain.models.settings import check_safetensors, weights_file
from selftrain.ssl_tasks.data.sources import open_source
from selftrain.ssl_tasks.errors import ConfigError, UserError
from selftrain.ssl_tasks.settings.run_config import RunConfig, learners
from selftrain.ssl_tasks.settings.section import existing_file
from selftrain.ssl_tasks.trained.files import require_trained


def check_paths(config: RunConfig, cache: Path) -> None:
    """Raises the error of a path that is not there or is not what it should be; of several, all at once."""
    problems: list[UserError] = []
    for look in _looks(config, cache):
        try:
            look()
        except UserError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError("\n".join([f"{len(problems)} paths cannot be used:", *(f"  {one}" for one in problems)]))


def _looks(config: RunConfig, cache: Path) -> Iterator[Callable[[], object]]:
    yield open_source(config.data.source, cache).check
    if config.given_teacher is not None:
        yield partial(require_trained, config.given_teacher)
    for name, learner in learners(config):
        if (file := weights_file(learner.model)) is not None:
            yield partial(check_safetensors, file, f"{name}.model.pretrained")
    for number, settings in enumerate(config.rounds, 1):
        if settings.select.overrides is not None:
            what = f"rounds.{number}.select.overrides"
            yield partial(existing_file, settings.select.overrides, what, "a CSV or Parquet file")
