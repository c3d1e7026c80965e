"""The decoded cache can be small, shared, deleted or damaged: pools give the same pixels."""

import multiprocessing
import pickle
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest

from selftrain.ssl_tasks.data.dataset import Dataset, Pool, PoolName
from selftrain.ssl_tasks.data.decode import Decoded, Decoder
from selftrain.ssl_tasks.data.decoded import DecodedCache
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

Build = Callable[..., Any]
POOLS: tuple[PoolName, ...] = ("labeled", "unlabeled", "validation", "test")


@pytest.fixture
def cache(workspace: Path) -> Path:
    return workspace / "cache"


@pytest.fixture
def artifact(build: Build, pets: Path, cache: Path) -> Artifact:
    return build(DataSettings.model_validate({"source": {"name": "folder", "path": pets}}), cache)


def pixels(artifact: Artifact, cache: Path, runtime: RuntimeSettings | None = None) -> np.ndarray:
    pool = Dataset.open(artifact, cache, runtime).pool("unlabeled")
    return pool.images(np.arange(len(pool)))


def digest(pool: Pool) -> bytes:
    return pool.images(np.arange(len(pool))).tobytes()


@pytest.mark.parametrize("gigabytes", [0.0, 2e-6, 8.0])
def test_pixels_are_the_same_with_any_cache(artifact: Artifact, cache: Path, gigabytes: float) -> None:
    whole = pixels(artifact, cache)
    shutil.rmtree(cache / "decoded")
    runtime = RuntimeSettings(cache_gb=gigabytes)
    assert (pixels(artifact, cache, runtime) == whole).all()
    assert (pixels(artifact, cache, RuntimeSettings(cache="off")) == whole).all()
    stored = sum(path.stat().st_size for path in cache.rglob("pixels-*.u8"))
    assert stored <= gigabytes * 1e9


def test_a_cache_that_is_off_holds_no_pixels(build: Build, pets: Path, cache: Path) -> None:
    from selftrain.ssl_tasks.execution.stage import Request, execute

    settings = DataSettings.model_validate({"source": {"name": "folder", "path": pets}})
    request = Request("dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", settings)
    execute(request, cache.parent, RuntimeSettings(cache="off"))
    assert not list(cache.rglob("pixels-*.u8"))


@pytest.mark.parametrize("damage", ["shortened", "segment", "gone"])
def test_a_damaged_cache_is_made_again(artifact: Artifact, cache: Path, damage: str) -> None:
    whole = pixels(artifact, cache)
    (file,) = cache.rglob("pixels-*.u8")
    if damage == "shortened":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "segment":
        next(cache.rglob("segments/*.parquet")).write_bytes(b"not Parquet")
    else:
        file.unlink()
    assert (pixels(artifact, cache) == whole).all()
    assert file not in set(cache.rglob("pixels-*.u8"))  # rows of the old file are never looked up in the new one
    assert (pixels(artifact, cache) == whole).all()


def test_a_pool_outlives_the_cache_that_it_was_opened_with(artifact: Artifact, cache: Path) -> None:
    pool = Dataset.open(artifact, cache).pool("unlabeled")
    before, packed = digest(pool), pickle.dumps(pool)
    shutil.rmtree(cache / "decoded")
    assert digest(pickle.loads(packed)) == before
    assert digest(pool) == before


def test_a_pool_sees_images_that_were_cached_after_another_pool_mapped_the_file(
    artifact: Artifact, cache: Path
) -> None:
    names: tuple[PoolName, ...] = ("labeled", "unlabeled", "test")
    before = [digest(Dataset.open(artifact, cache).pool(name)) for name in names]
    shutil.rmtree(cache / "decoded")
    data = Dataset.open(artifact, cache)
    assert [digest(data.pool(name)) for name in names] == before


@pytest.mark.parametrize("lost", ["pixels-*.u8", "segments/*.parquet", "segments/00000000-*.parquet", "*/*.*"])
def test_rows_that_a_pool_knows_are_never_given_to_other_images(artifact: Artifact, cache: Path, lost: str) -> None:
    data = Dataset.open(artifact, cache)
    pools = {name: data.pool(name) for name in POOLS}
    for _ in range(3):  # each pool finds others' rows, its own, and none
        before = {name: digest(pool) for name, pool in pools.items()}
        for file in cache.rglob(lost):
            file.unlink()
        for name in POOLS:
            assert digest(Dataset.open(artifact, cache).pool(name)) == before[name]
            assert {one: digest(pool) for one, pool in pools.items()} == before


def test_files_that_vanish_at_any_moment_change_no_pixel(artifact: Artifact, cache: Path) -> None:
    data, chance = Dataset.open(artifact, cache), random.Random(0)
    pools = [data.pool(name) for name in POOLS]
    expected = [digest(pool) for pool in pools]

    def read(number: int) -> None:
        for _ in range(40):
            assert digest(pools[number % len(pools)]) == expected[number % len(pools)]

    with ThreadPoolExecutor(6) as threads:
        readers = [threads.submit(read, number) for number in range(6)]
        while not all(reader.done() for reader in readers):
            files = [file for file in (cache / "decoded").rglob("*") if file.is_file()]
            for file in chance.sample(files, chance.randint(0, len(files))):
                file.unlink(missing_ok=True)
            if chance.random() < 0.3:
                shutil.rmtree(cache / "decoded", ignore_errors=True)
            time.sleep(chance.uniform(0, 0.05))
    for reader in readers:
        reader.result()


def test_processes_that_miss_the_same_images_agree(artifact: Artifact, cache: Path) -> None:
    pool = Dataset.open(artifact, cache).pool("unlabeled")
    expected = digest(pool)
    shutil.rmtree(cache / "decoded")
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as processes:
        assert list(processes.map(digest, [pool] * 3)) == [expected] * 3


def test_images_that_are_gone_say_so(artifact: Artifact, cache: Path, pets: Path) -> None:
    shutil.rmtree(cache / "decoded")
    shutil.rmtree(pets / "cat")
    with pytest.raises(DataError, match=r"images:cat/.* but not any more: no such file"):
        pixels(artifact, cache)


@pytest.mark.parametrize("use", ["auto", "off"])
def test_images_that_were_changed_in_place_say_so(
    artifact: Artifact, cache: Path, pets: Path, paint: Callable[..., Path], use: Literal["auto", "off"]
) -> None:
    shutil.rmtree(cache / "decoded")
    for number in range(12):
        paint(pets / "cat" / f"{number:02d}.png", 900 + number)
    with pytest.raises(DataError, match=r"images:cat/.* has changed since the data set was made"):
        pixels(artifact, cache, RuntimeSettings(cache=use))


def test_equal_images_share_a_row_and_other_limits_are_kept(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path, Decoder(1, 1, 100))
    image = [Decoded(np.full((1, 1, 1), value, np.uint8), bytes([value]) * 16, 1, 1, "L") for value in range(4)]
    keys = [bytes([number]) * 32 for number in range(5)]
    cache.append([(keys[0], image[0]), (keys[1], image[1]), (keys[2], image[0])], 1e9)
    cache.append([(keys[3], image[1]), (keys[4], image[2])], 2)
    index = cache.index()
    assert index.rows == 2
    found = index.find(keys)
    assert index.table["row"].take(found).to_pylist() == [0, 1, 0, 1, -1]
    assert cache.known(keys[4:], with_pixels=True) == [None]
    known = cache.known([*keys[4:], None, b"?" * 32], with_pixels=False)
    assert [entry and entry.content for entry in known] == [image[2].content, None, None]
    assert index.pixels is not None
    assert cache.map(index.pixels).ravel().tolist() == [0, 1]


def test_a_kill_between_pixels_and_index_leaves_a_sound_cache(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path, Decoder(1, 1, 100))
    first, second = (Decoded(np.full((1, 1, 1), v, np.uint8), bytes([v]) * 16, 1, 1, "L") for v in (7, 9))
    cache.append([(b"a" * 32, first)], 1e9)
    pixels = cache.index().pixels
    assert pixels is not None
    with pixels.open("ab") as file:
        file.write(b"\xff" * 5)  # rows that were written and never entered
    cache.append([(b"b" * 32, second)], 1e9)
    index = cache.index()
    assert index.pixels == pixels
    rows = index.rows_of(pa.array([first.content, second.content], pa.binary(16)))
    assert cache.map(pixels)[rows].ravel().tolist() == [7, 9]
