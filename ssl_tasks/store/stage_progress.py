"""Reads the progress of a running stage from the events that it writes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAIL = 1 << 18  # bytes read from the end of the file, so that the rate is that of the last minutes


@dataclass(frozen=True)
class Progress:
    """The progress of a running stage: `done` of `total`, its rate and the remaining time."""

    done: int
    total: int
    what: str  # train, images
    rate: float | None  # a second; None until there are two events
    remaining_seconds: float | None


def read_progress(events: Path, since: float) -> Progress | None:
    """Returns the newest progress that the stage has written since it started; None if there is none."""
    found = [(one["time"], *one["progress"], one.get("what", "")) for one in _tail(events) if _counts(one, since)]
    if not found:
        return None
    end, done, total, what = found[-1]
    begin, first = next((at, before) for at, before, whole, kind in found if (whole, kind) == (total, what))
    rate = (done - first) / (end - begin) if end > begin and done > first else None
    return Progress(done, total, what, rate, None if rate is None else round((total - done) / rate, 1))


def _counts(event: dict[str, Any], since: float) -> bool:
    return "progress" in event and event["time"] >= since


def _tail(events: Path) -> Iterator[dict[str, Any]]:
    try:
        with events.open("rb") as file:
            file.seek(max(0, events.stat().st_size - TAIL))
            lines = file.read(TAIL).splitlines()
    except OSError:  # the stage has not started, or its artifact is being committed
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # an incomplete line: the first of the tail, or one being written
            continue
        if isinstance(event, dict) and "time" in event:
            yield event
