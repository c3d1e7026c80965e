"""The contact sheet shows every view of some labelled images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftrain.ssl_tasks.data.survey.contact_sheet import DRAWN, GAP, TITLE, contact_sheet
from selftrain.ssl_tasks.settings.data import AugmentSettings
from tests.data.fakes import FakeDataset

COLUMNS = sum(count for _, count in DRAWN)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_has_a_row_for_each_image_and_columns_for_each_view(tmp_path: Path, channels: int) -> None:
    dataset = FakeDataset(channels=channels, image_size=8)
    contact_sheet(dataset, AugmentSettings(), tmp_path / "sheet.png", rows=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * (64 + GAP) + TITLE + GAP, COLUMNS * (64 + GAP) + GAP, 3)
    first = sheet[TITLE : TITLE + 64, GAP : GAP + 64][::8, ::8]
    assert np.array_equal(first, np.broadcast_to(dataset.pool("labeled").pixels[0], (8, 8, 3)))


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "other"):
        contact_sheet(FakeDataset(), AugmentSettings(strong="ctaugment"), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
