"""Defines every error that a user can meet, in one tree.

    SelftrainError                 exit code 3   a stage failed
    ├── UserError                  exit code 2   the input is wrong; the message says what to change
    │   ├── ConfigError                          a setting, a recipe, an option
    │   ├── DataError                            an image source, a manifest, a table of corrections
    │   └── NotFound                             a run, stage, model or sample that does not exist
    ├── StageFailed                exit code 3   carries stage, reason and log file
    ├── TrainingDiverged           exit code 3   a loss that is not a number, or grows without bound
    ├── OutOfMemory                exit code 3   says what to lower
    ├── QueryTimeout               exit code 3   a query took longer than its time limit
    ├── DamagedArtifact            exit code 3   a file does not match its digest
    ├── DamagedRecord              exit code 3   a run's record is damaged
    ├── Transient                  exit code 3   may succeed when retried; only these are retried
    └── Interrupted                exit code 130 a signal or a scheduler stopped it; a checkpoint was written

The command `selftrain` ends with
    0    done
    2    the input is wrong, the command line included
    3    a stage failed, or something failed that is not the user's input
    130  interrupted by Ctrl-C, SIGTERM or the end of the terminal

A message says what was found, what was expected and what to do. The command line prints it alone.
"""

import difflib
import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SelftrainError(Exception):
    """Base of all errors of this package."""

    exit_code = 3


class UserError(SelftrainError):
    """The user's input is wrong."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is missing, unknown, of the wrong type or out of range."""


class DataError(UserError):
    """An image source, a manifest or a table cannot be used as it is."""


class NotFound(UserError):
    """A run, stage, model or sample does not exist."""


class StageFailed(SelftrainError):
    """A stage did not finish."""

    def __init__(self, stage: str, reason: str, log: str | None = None) -> None:
        super().__init__(f"stage '{stage}' failed: {reason}" + (f"\nlog: {log}" if log else ""))
        self.stage, self.reason, self.log = stage, reason, log


class TrainingDiverged(SelftrainError):
    """The loss is not finite, or grew without bound."""


class OutOfMemory(SelftrainError):
    """An accelerator's memory, or the host's, was not enough."""


class QueryTimeout(SelftrainError):
    """A query took longer than its time limit."""


class DamagedArtifact(SelftrainError):
    """A stored file differs from its recorded digest."""


class DamagedRecord(SelftrainError):
    """A record of a run is damaged."""


class Transient(SelftrainError):
    """A temporary fault; trying again may succeed."""


class Interrupted(SelftrainError):
    """A signal or a scheduler stopped the command, in good order."""

    exit_code = 130


def describe(error: BaseException) -> dict[str, str]:
    """Returns an error as JSON for another process: its class in our tree, and a message of one line."""
    if isinstance(error, SelftrainError):
        return {"error": type(error).__name__, "message": str(error)}
    if out_of_space(error):
        where = getattr(error, "filename", None) or "the workspace"
        return {
            "error": "SelftrainError",
            "message": f"no space left to write {where}. Free some space (`selftrain clean` lists files to "
            "delete) and run again",
        }
    if isinstance(error, MemoryError):
        return {
            "error": "OutOfMemory",
            "message": "the memory of this host was not enough. Lower train.batch_size or runtime.workers",
        }
    if isinstance(error, (ConnectionError, TimeoutError, BlockingIOError)):
        return {"error": "Transient", "message": f"{type(error).__name__}: {error}"}
    lines = str(error).strip().splitlines() or [""]
    return {"error": "SelftrainError", "message": f"{type(error).__name__}: {lines[0]}".removesuffix(": ")}


def described(answer: Mapping[str, Any], stage: str = "", log: str | None = None) -> SelftrainError:
    """Returns the error of the JSON that `describe` made; a stage's error gets the name `stage`, if given."""
    kind = globals().get(answer["error"])
    if not (isinstance(kind, type) and issubclass(kind, SelftrainError)):
        kind = SelftrainError
    if kind is StageFailed:
        return StageFailed(stage, answer["message"], log) if stage else SelftrainError(answer["message"])
    return kind(answer["message"])


def out_of_space(error: BaseException) -> bool:
    """Returns whether a disk or a quota is full, also by the words of errors from libraries in other languages."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return isinstance(error, Exception) and any(os.strerror(one) in str(error) for one in FULL)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: the closest known name, then all of them."""
    choices = sorted(known)
    if not choices:
        return ""
    close = difflib.get_close_matches(name, choices, n=1)
    return (f" Did you mean '{close[0]}'?" if close else "") + f" Known: {', '.join(choices)}."


def brief(texts: Sequence[str], most: int = 10) -> str:
    """Returns the first few texts, each short and on one line, for a message."""
    shown = [one_line(text) for text in texts[:most]]
    return ", ".join(shown) + (f" … ({len(texts)} in all)" if len(texts) > most else "")


def one_line(text: str, most: int = 80) -> str:
    """Shortens a text from a file and removes line breaks and control characters."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def cut(text: str, longest: int = 100) -> str:
    """Shortens a long text for a message."""
    return text if len(text) <= longest else f"{text[:longest]}…"
