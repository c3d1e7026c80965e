"""Picks the pseudo-labels that the gallery shows, with their history, and packs their pictures into a few sprites.

The review queue comes first, then uncertain and changed ones, and examples of every class. Sprites are small enough for
a page sent by mail. The page's JSON has no character that HTML could read as markup, and no NaN or infinity.
"""

import base64
import heapq
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.pseudo_labels.inspection import review_queue
from selftrain.ssl_tasks.pseudo_labels.schema import Predictions
from selftrain.ssl_tasks.pseudo_labels.views import RunTables
from selftrain.ssl_tasks.report.data import Gallery, Opinion, Pictures, Sample
from selftrain.ssl_tasks.report.rounds import looked
from selftrain.ssl_tasks.store.runs import Run

MOST_PICTURES = 1_600  # over all rounds
LAST_ROUND = 0.5  # share of the last round

# Ids are sorted, with ties broken by id, so that the choice does not depend on threads.
FLIPPED = "SELECT sample_id FROM looked WHERE before <> label ORDER BY confidence DESC, sample_id LIMIT {limit}"
NEAR_KEPT = "SELECT sample_id FROM looked WHERE near AND given IS NOT NULL ORDER BY confidence, sample_id LIMIT {limit}"
NEAR_LEFT = (
    "SELECT sample_id FROM looked WHERE near AND given IS NULL ORDER BY confidence DESC, sample_id LIMIT {limit}"
)
BY_CLASS = """
    SELECT unnest(max_by(sample_id, (confidence, sample_id), {each}) FILTER (given IS NOT NULL)) AS sample_id
    FROM looked GROUP BY coalesce(given, label)
    UNION SELECT unnest(min_by(sample_id, (confidence, sample_id), {each}) FILTER (given IS NOT NULL))
    FROM looked GROUP BY coalesce(given, label)
    UNION SELECT unnest(max_by(sample_id, (confidence, sample_id), {each}) FILTER (given IS NULL))
    FROM looked GROUP BY label
    ORDER BY sample_id LIMIT {limit}
"""
PEOPLES = "SELECT sample_id FROM looked WHERE source = 'override' OR rejected ORDER BY sample_id LIMIT {limit}"
ANY = "SELECT sample_id FROM looked ORDER BY hash(sample_id), sample_id LIMIT {limit}"
# The queries that pick a round's pictures, with their shares.
SHARES = ((FLIPPED, 0.12), (NEAR_KEPT, 0.08), (NEAR_LEFT, 0.08), (BY_CLASS, 0.3), (PEOPLES, 0.04), (ANY, 0.08))
QUEUE_SHARE = 0.3


@dataclass
class Picks:
    """The picked samples in order of usefulness, with each round's review queue."""

    ids: dict[str, None]
    queue: dict[tuple[int, str], tuple[float, str]]


def quota(round_number: int, rounds: int) -> int:
    """Returns the number of pictures that a round may pick."""
    if rounds == 1:
        return MOST_PICTURES
    return int(MOST_PICTURES * (LAST_ROUND if round_number == rounds else (1 - LAST_ROUND) / (rounds - 1)))


def pick(
    connection: duckdb.DuckDBPyConnection,
    tables: RunTables,
    round_number: int,
    num_classes: int,
    picks: Picks,
) -> None:
    """Adds the pictures that a round picks; the table `looked` must be this round's."""
    room = quota(round_number, len(tables.rounds))
    if next(one for one in tables.rounds if one.round == round_number).selection is not None:
        queue = review_queue(tables, round_number, limit=int(room * QUEUE_SHARE))
        for sample, score, why in zip(queue["sample_id"], queue["score"], queue["reasons"], strict=True):
            if score > 0:
                picks.ids.setdefault(sample)
                picks.queue[round_number, sample] = float(np.round(score, 4)), why
    is_last = round_number == max(one.round for one in tables.rounds)
    for query, share in SHARES:
        limit = max(1, int(room * share))
        if query is ANY and is_last:  # all images of a small data set are shown
            limit = max(limit, MOST_PICTURES - len(picks.ids))
        filled = query.format(limit=limit, each=max(1, limit // (3 * num_classes)))
        for (sample,) in connection.execute(filled).fetchall():
            picks.ids.setdefault(sample)


TOP = 5  # number of probabilities shown per sample
MOST_OF_TEXT = 0.4  # share of the gallery's bytes for text; the rest is for pictures


def open_gallery(
    connection: duckdb.DuckDBPyConnection, run: Run, tables: RunTables, picks: Picks, candidates: int, most_bytes: int
) -> Gallery:
    """Returns the gallery: the picked samples, then their pictures, within the given bytes."""
    found = read_picked(connection, tables, picks)
    samples = [sample_of(rows, at, picks) for at, rows in enumerate(found)]
    used = np.cumsum([size(asdict(sample)) for sample in samples])
    samples = samples[: int(np.searchsorted(used, most_bytes * MOST_OF_TEXT, side="right"))]
    if not samples:
        return Gallery((), NO_PICTURES, candidates)
    positions = [int(rows[-1]["position"]) for rows in found[: len(samples)]]
    pictures, note = draw(run, positions, most_bytes - int(used[len(samples) - 1]))
    if pictures is None:
        return Gallery(tuple(replace(one, picture=None) for one in samples), NO_PICTURES, candidates, (note,))
    return Gallery(tuple(samples[: len(pictures.sprites) * COLUMNS**2]), pictures, candidates)


def read_picked(
    connection: duckdb.DuckDBPyConnection, tables: RunTables, picks: Picks
) -> list[list[Mapping[str, Any]]]:
    """Returns, for each picked sample, its rows in the rounds' tables, the oldest round first."""
    found: dict[str, list[Mapping[str, Any]]] = {sample: [] for sample in picks.ids}
    connection.register("picked_ids", pa.table({"sample_id": pa.array(list(found), pa.string())}))
    for one in tables.rounds:
        more = ", p.probs" + (", p.classes" if Predictions.open(one.predictions).sparse else "")
        query = looked(one, more, "AND p.sample_id IN (SELECT sample_id FROM picked_ids)")
        for row in connection.sql(query).to_arrow_table().to_pylist():
            found[row["sample_id"]].append({"round": one.round, **row})
    connection.unregister("picked_ids")
    return list(found.values())


def draw(run: Run, positions: list[int], most_bytes: int) -> tuple[Pictures | None, str]:
    """Returns the pictures, or the reason why there are none; the gallery is useful without them."""
    dataset = run.dataset
    assert dataset is not None
    try:
        pool = Dataset.open(dataset, run.workspace / "cache", run.config.runtime).pool("unlabeled")
        sheets, tile = make_sheets(pool.images, np.array(positions, np.int64))
    except (SelftrainError, OSError) as error:
        return None, f"The images can no longer be read, so the pseudo-labels are shown without them: {error}"
    return encode_sheets(sheets, tile, most_bytes), ""


def sample_of(rows: list[Mapping[str, Any]], picture: int, picks: Picks) -> Sample:
    """Returns one sample from its rows, one per round."""
    last = rows[-1]
    opinions = tuple(opinion_of(row, picks) for row in rows)
    truth = last["truth"]
    return Sample(
        last["sample_id"], last["uri"] or "", truth if truth is not None and truth >= 0 else None, picture, opinions
    )


def opinion_of(row: Mapping[str, Any], picks: Picks) -> Opinion:
    """Returns the prediction and selection of one round from its row."""
    score, why = picks.queue.get((row["round"], row["sample_id"]), (0.0, ""))
    agreement = row["view_agreement"]
    return Opinion(
        round=row["round"],
        label=row["label"],
        given=row["given"],
        source=row["source"],
        copies=row["copies"],
        rank=row["rank_in_class"],
        confidence=digits(row["confidence"]),
        margin=digits(row["margin"]),
        agreement=None if agreement is None else digits(agreement),
        before=row["before"],
        near=row["near"],
        rejected=row["rejected"],
        score=score,
        why=why,
        top=largest(row["probs"], row.get("classes")),
    )


def largest(probs: list[float], classes: list[int] | None) -> tuple[tuple[int, float], ...]:
    """Returns the most probable classes, the most probable first."""
    known = enumerate(probs) if classes is None else zip(classes, probs, strict=True)
    return tuple((one, digits(p)) for one, p in heapq.nlargest(TOP, known, key=lambda pair: (pair[1], -pair[0])))


def digits(value: float) -> float:
    """Rounds to four digits, which keeps the page small."""
    return round(value, 4) if math.isfinite(value) else 0.0


Load = Callable[[NDArray[np.int64]], NDArray[np.uint8]]  # positions → [n, S, S, C]

LARGEST_TILE = 96
COLUMNS = 16
LOSSLESS_TILE = 16  # tiles so small that JPEG artefacts would be visible; PNG is small enough
QUALITIES = (88, 70, 50, 30)
TILE_MULTIPLE = 8  # size of JPEG's blocks, so that no tile bleeds into its neighbour
NO_PICTURES = Pictures(8, COLUMNS, ())


@dataclass(frozen=True)
class Encoding:
    """The format, size and quality of sprites."""

    format: str
    quality: int

    def uri(self, sheet: NDArray[np.uint8]) -> str:
        """Returns the data URI of one sprite."""
        stream = io.BytesIO()
        image = Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)
        if self.format == "png":
            image.save(stream, "PNG", optimize=True)
        else:
            image.save(stream, "JPEG", quality=self.quality, subsampling=0)
        return f"data:image/{self.format};base64,{base64.b64encode(stream.getvalue()).decode()}"


def make_sheets(load: Load, positions: NDArray[np.int64]) -> tuple[list[NDArray[np.uint8]], int]:
    """Returns the images at `positions`, in order, as arrays of COLUMNS × COLUMNS tiles, and the side of a tile."""
    each, sheets, tile = COLUMNS**2, [], LARGEST_TILE
    for start in range(0, len(positions), each):
        images = load(positions[start : start + each])
        tile = tile_side(images.shape[1])
        sheets.append(lay_out([fit(image, tile) for image in images], tile))
    return sheets, tile


def encode_sheets(sheets: list[NDArray[np.uint8]], tile: int, most_bytes: int) -> Pictures:
    """Encodes sheets as sprites, with lower quality until they fit, then without the last ones."""
    kinds = [Encoding("png", 0)] if tile <= LOSSLESS_TILE else [Encoding("jpeg", quality) for quality in QUALITIES]
    sprites: list[str] = []
    for kind in kinds:
        sprites = [kind.uri(sheet) for sheet in sheets]
        if sum(map(len, sprites)) <= most_bytes:
            break
    while sum(map(len, sprites)) > most_bytes:
        sprites.pop()
    return Pictures(tile, COLUMNS, tuple(sprites))


def tile_side(image_size: int) -> int:
    """Returns the side of a tile: a multiple of JPEG's block, not much larger than the image."""
    return min(LARGEST_TILE, -(-image_size // TILE_MULTIPLE) * TILE_MULTIPLE)


def fit(image: NDArray[np.uint8], tile: int) -> NDArray[np.uint8]:
    """Resizes an image to a tile: a larger image is averaged, a smaller one enlarged by whole pixels."""
    if image.shape[0] == tile:
        return image
    channels = image.shape[-1]
    kind = Image.Resampling.BOX if image.shape[0] > tile else Image.Resampling.NEAREST
    small = Image.fromarray(image.squeeze(-1) if channels == 1 else image).resize((tile, tile), kind)
    return np.asarray(small).reshape(tile, tile, channels)


def lay_out(tiles: list[NDArray[np.uint8]], tile: int) -> NDArray[np.uint8]:
    """Arranges tiles in rows from the top left, and cuts empty rows off at the end."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.zeros((rows * tile, COLUMNS * tile, tiles[0].shape[-1]), np.uint8)
    for number, image in enumerate(tiles):
        top, left = number // COLUMNS * tile, number % COLUMNS * tile
        sheet[top : top + tile, left : left + tile] = image
    return sheet


def embed(value: Any) -> str:
    """Returns JSON that no HTML parser can misread, whatever text the data contains."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Half of a surrogate pair, from a file name that is not UTF-8, cannot be encoded.
    return text.encode("utf-8", "backslashreplace").decode()


def size(value: Any) -> int:
    """Returns the bytes of a value in the page."""
    return len(embed(value).encode())


def finite(value: Any) -> Any:
    """Replaces NaN and infinity by null, because JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
