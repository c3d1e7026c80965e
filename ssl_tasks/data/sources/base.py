"""What a source of images is: a stable list of samples, and how to read one of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from selftrain.ssl_tasks.store.file_digests import FileDigests

SPLITS = ("labeled", "unlabeled", "validation", "test")


@dataclass(frozen=True)
class Listing:
    """Every sample of a source, column by column, in an order that added samples do not stir."""

    ids: pa.Array  # string, unique
    labels: pa.Array  # string, null where there is none
    splits: pa.Array  # string, one of SPLITS where the source says so; null is drawn
    uris: pa.Array  # string: what the source reads it by, relative to the source's place
    errors: pa.Array  # string, null: why a sample cannot be read, where the list itself shows it
    classes: tuple[str, ...] | None = None  # the source's own class list, classes without images included
    notes: tuple[str, ...] = field(default_factory=tuple)  # what was passed over, for a person

    @classmethod
    def of(
        cls,
        ids: Sequence[str] | pa.Array,
        labels: Sequence[str | None] | pa.Array,
        splits: Sequence[str | None] | pa.Array,
        uris: Sequence[str] | pa.Array,
        errors: Sequence[str | None] | None = None,
        classes: tuple[str, ...] | None = None,
        notes: tuple[str, ...] = (),
    ) -> "Listing":
        """A listing from plain sequences."""

        def strings(values: Sequence[str | None] | pa.Array) -> pa.Array:
            return values if isinstance(values, pa.Array) else pa.array(values, pa.string())

        missing = pa.nulls(len(ids), pa.string()) if errors is None else strings(errors)
        return cls(strings(ids), strings(labels), strings(splits), strings(uris), missing, classes, notes)

    def __len__(self) -> int:
        return len(self.ids)


class ImageSource(ABC):
    """A place that images come from. Picklable: what it opens, it opens again in another process."""

    flip: bool = True  # whether a mirrored image is still of its class
    shape: tuple[int, int] | None = None  # (image size, channels) where all images are alike

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for a person: entries that were passed over, and classes that look alike."""
        return ()

    @abstractmethod
    def fingerprint(self, files: "FileDigests") -> str:
        """A digest of all that the source holds; cheap where nothing changed."""

    @abstractmethod
    def listing(self) -> Listing:
        """Every sample."""

    @abstractmethod
    def read(self, uri: str) -> bytes | np.ndarray:
        """One image file's bytes, or its pixels; OSError where it is not there."""

    def check(self) -> None:  # noqa: B027 - what is computed has no place to look at
        """DataError where the source's place cannot be one. A glance: it lists no images and reads none."""

    def file_keys(self, listing: Listing, files: "FileDigests") -> list[bytes | None] | None:
        """The digest of every sample's bytes where it is known without reading them, else None."""
        return None


class DrawnSource(ImageSource):
    """A source that computes its images from their names: there is nothing to decode, to hash or to cache."""

    @abstractmethod
    def draw(self, uris: Sequence[str]) -> np.ndarray:
        """uint8 [n, S, S, C], many at once."""

    def read(self, uri: str) -> np.ndarray:
        return self.draw([uri])[0]
