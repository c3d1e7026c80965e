"""Where images come from: one file per source."""

from pathlib import Path
from typing import assert_never

from selftrain.ssl_tasks.data.sources.base import ImageSource
from selftrain.ssl_tasks.settings.data import (
    DigitsSource,
    FolderSource,
    Source,
    SyntheticSource,
    TableSource,
    TorchvisionSource,
)


def open_source(settings: Source, cache: Path) -> ImageSource:
    """The source that the settings name; `cache` is for what it unpacks. Only its own module is imported."""
    match settings:
        case DigitsSource():
            from selftrain.ssl_tasks.data.sources.digits import Digits

            return Digits(settings)
        case FolderSource():
            from selftrain.ssl_tasks.data.sources.folder import Folder

            return Folder(settings)
        case TableSource():
            from selftrain.ssl_tasks.data.sources.table import Table

            return Table(settings, cache)
        case TorchvisionSource():
            from selftrain.ssl_tasks.data.sources.torchvision_sets import TorchvisionSet

            return TorchvisionSet(settings)
        case SyntheticSource():
            from selftrain.ssl_tasks.data.sources.synthetic import Synthetic

            return Synthetic(settings)
        case _:
            assert_never(settings)
