"""Shards have fixed borders and are stored once."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.ssl_tasks.pseudo_labels.labeller import ShardCache, cut, shard_key, spread


def pieces(ids: list[str], most: int) -> list[tuple[str, ...]]:
    return [tuple(ids[start:stop]) for start, stop in cut(ids, most)]


@given(size=st.integers(0, 300), most=st.integers(1, 50))
def test_shards_cover_all_samples_in_order_and_are_neither_too_large_nor_too_small(size: int, most: int) -> None:
    ids = [f"image-{number}" for number in range(size)]
    found = pieces(ids, most)
    assert [name for piece in found for name in piece] == ids
    assert all(len(piece) <= most for piece in found)
    assert all(len(piece) >= most / 2 for piece in found[:-1])


@pytest.mark.parametrize("where", [0.0, 0.31, 0.77, 1.0])
def test_a_new_image_anywhere_changes_the_shard_that_it_is_in_and_at_most_one_more(where: float) -> None:
    ids = [f"image-{number:05d}" for number in range(20_000)]
    at = int(where * len(ids))
    before, after = set(pieces(ids, 1000)), pieces([*ids[:at], "new", *ids[at:]], 1000)
    assert len([piece for piece in after if piece not in before]) <= 2


def test_many_new_images_in_different_places_cost_only_their_shards() -> None:
    ids = [f"image-{number:05d}" for number in range(40_000)]
    added = sorted([*ids, *(f"image-{number:05d}-new" for number in range(0, 40_000, 10_000))])
    changed = [piece for piece in pieces(added, 1000) if piece not in set(pieces(ids, 1000))]
    assert len(changed) <= 8


def test_the_key_knows_samples_contents_their_order_and_the_question() -> None:
    keys = {
        shard_key({"teacher": "t"}, ["a", "b"], ["1", "2"]),
        shard_key({"teacher": "u"}, ["a", "b"], ["1", "2"]),
        shard_key({"teacher": "t"}, ["b", "a"], ["2", "1"]),
        shard_key({"teacher": "t"}, ["a", "b"], ["1", "3"]),
        shard_key({"teacher": "t"}, ["a1", "b"], ["", "2"]),
        shard_key({"teacher": "t"}, ["a"], ["1"]),
    }
    assert len(keys) == 6


def test_a_shard_that_lost_a_bit_is_not_found_and_removed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    path = cache.put("ab12", b"rows of numbers")
    assert cache.find("ab12") == path
    damaged = bytearray(path.read_bytes())
    damaged[3] ^= 1
    path.write_bytes(damaged)
    assert cache.find("ab12") is None
    assert not path.exists()


def test_a_shard_without_its_digest_is_not_used(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    cache.put("ab12", b"rows").with_suffix(".sha256").unlink()
    assert cache.find("ab12") is None


@given(st.lists(st.text(max_size=5), min_size=1, max_size=6))
def test_numbers_of_a_sample_do_not_depend_on_its_batch(ids: list[str]) -> None:
    together = spread(ids, 3, "view-1", 3)
    assert ((together >= 0) & (together < 1)).all()
    for number, one in enumerate(ids):
        assert (spread([one], 3, "view-1", 3)[0] == together[number]).all()
    assert (spread(ids, 4, "view-1", 3) != together).all()
