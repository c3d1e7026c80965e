"""The file itself: self-contained, safe against names, small."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.ssl_tasks.report import page
from selftrain.ssl_tasks.report.page import STATIC, report_data, write_report
from selftrain.ssl_tasks.report.pictures import COLUMNS, embed, encode_sheets, finite, fit, make_sheets
from selftrain.ssl_tasks.store.runs import Run
from tests.report.hostile import CLASSES, PREFIXES


def test_page_refers_to_nothing_outside_itself(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b", text.partition("<script")[0])
    assert not re.search(r"<script[^>]*\bsrc=", text)
    assert not re.search(r"@import|sourceMappingURL|\bimport\(", text)
    assert "default-src 'none'" in text


def test_names_from_data_never_stand_in_the_markup(page: Path) -> None:
    text = page.read_text()
    assert not any(name in text for name in (*CLASSES, *PREFIXES[:1], PREFIXES[3]))
    assert text.count("</script>") == 3  # of the page's own three


def test_embedded_data_is_the_run_s(run: Run, page: Path) -> None:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert text is not None
    assert json.loads(text[1]) == json.loads(json.dumps(finite(asdict(report_data(run)))))


@given(
    st.recursive(st.text() | st.floats() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_embedded_json_has_no_character_of_markup_and_is_the_same_value(value: object) -> None:
    text = embed(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == finite(value)


def test_half_a_surrogate_pair_does_not_stop_the_page() -> None:
    assert json.loads(embed(["caf\udce9.png"])) == ["caf\udce9.png"]


def test_the_same_run_gives_the_same_bytes(run: Run, page: Path, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_only_addresses_of_the_web_become_links() -> None:
    source = (STATIC / "page.js").read_text()
    assert "/^https?:\\/\\//i.test(address)" in source


def test_library_carries_its_licences_and_no_source_map() -> None:
    library = (STATIC / "vendor" / "charts.min.js").read_text()
    assert all(text in library[:4_000] for text in ("Observable, Inc.", "Mike Bostock", "Permission to use, copy"))
    assert "sourceMappingURL" not in library


def noise(positions: np.ndarray) -> np.ndarray:
    return np.random.default_rng(len(positions)).integers(0, 256, (len(positions), 300, 300, 3), np.uint8)


def test_pictures_get_coarser_and_fewer_rather_than_too_large() -> None:
    sheets, tile = make_sheets(noise, np.arange(2 * COLUMNS**2 + 5))
    whole = encode_sheets(sheets, tile, 10**9)
    assert (tile, len(whole.sprites)) == (96, 3)
    for limit in (sum(map(len, whole.sprites)) // 2, 3_000_000, 400_000):
        pictures = encode_sheets(sheets, tile, limit)
        assert sum(map(len, pictures.sprites)) <= limit


@pytest.mark.parametrize(("size", "tile"), [(8, 8), (20, 24), (32, 32), (224, 96)])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_whole_blocks_and_lie_where_the_page_looks(size: int, tile: int, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, size, size, channels), np.uint8)
    sheets, side = make_sheets(lambda at: images[at], np.arange(20))
    assert side == tile
    assert sheets[0].shape == (2 * tile, COLUMNS * tile, channels)
    assert (sheets[0][tile:, tile : 2 * tile] == fit(images[COLUMNS + 1], tile)).all()


@pytest.mark.parametrize("room", [60_000, 150_000, 10_000_000])
def test_the_gallery_takes_the_room_that_is_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    without = write_report(Run.create(run.workspace, run.config), tmp_path / "empty.html").stat().st_size
    monkeypatch.setattr(page, "MOST_BYTES", room)
    assert write_report(run, tmp_path / "small.html").stat().st_size <= without + room
