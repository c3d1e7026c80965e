"""A crashed run is started again by the server, but not for ever."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.client.schemas.objects import State, StateType

from selftrain.flows.prefect.flow import crashes_in_a_row
from selftrain.flows.prefect.server import RESTARTED

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def history(*words: str) -> list[State[Any]]:
    """States in this order, given out of order as a server may."""
    special = {
        "RESTARTED": ("SCHEDULED", None, RESTARTED),
        "RETRIED": ("SCHEDULED", "AwaitingRetry", "a person asked"),
        "LATE": ("SCHEDULED", "Late", ""),
        "WAITS": ("SCHEDULED", "AwaitingConcurrencySlot", "limit reached"),
    }
    states: list[State[Any]] = []
    for number, word in enumerate(words):
        kind, name, message = special.get(word, (word, None, ""))
        at = BEGIN + timedelta(seconds=number)
        states.append(State(type=StateType[kind], name=name, message=message, timestamp=at))
    return states[::-1]


def test_a_first_run_has_not_crashed() -> None:
    assert crashes_in_a_row(history("SCHEDULED", "PENDING", "RUNNING")) == 0


def test_each_crash_counts_until_a_person_retries() -> None:
    once = ("RUNNING", "CRASHED", "RESTARTED", "PENDING")
    assert crashes_in_a_row(history("SCHEDULED", *once, *once, *once, "RUNNING")) == 3
    assert crashes_in_a_row(history("SCHEDULED", *once, *once, "RETRIED", "PENDING", *once, "RUNNING")) == 1


def test_waiting_for_a_place_is_not_asking_again() -> None:
    waited = ("RUNNING", "CRASHED", "RESTARTED", "LATE", "WAITS")
    assert crashes_in_a_row(history("SCHEDULED", "WAITS", *waited, *waited, "RUNNING")) == 2
