"""Ends a command in good order when SIGTERM, Ctrl-C or the end of the terminal asks for it.

A signal that was ignored when the command was started (nohup, a background job of a script) stays ignored.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from selftrain.ssl_tasks.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LEAVE_SECONDS = 3.0  # seconds that a command has to clean up if no stage is running
EXIT_CODE = Interrupted.exit_code
SAID = "interrupted; run the same command again to resume"
_told = False  # whether a signal has asked this command to end


def end_on_signals() -> None:
    """Makes each of the signals end this process at any point; the process must be a command's own.

    They raise KeyboardInterrupt. An import or a callback may swallow it, so a thread ends the process soon after.
    Outside of `interruptible`, a sudden end does no harm.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


@contextlib.contextmanager
def interruptible(message: str = "asked to stop") -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGHUP into Interrupted within the block, in the main thread only.

    Yields a function that returns whether a signal has come, in case the exception was swallowed.
    """
    came = False

    def interrupt(*_: object) -> None:
        nonlocal came
        came = True
        raise Interrupted(message)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    if _told:
        raise Interrupted(message)
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {
        signal.SIGTERM: interrupt,
        signal.SIGHUP: _hang_up,
    }
    if signal.getsignal(signal.SIGINT) == _end:  # work that writes a checkpoint gets the time for it
        handlers[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield lambda: came
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def was_told() -> bool:
    """Returns whether a signal has asked this command to end."""
    return _told


def leave() -> None:
    """Ends the process now."""
    with contextlib.suppress(OSError):
        os.write(2, f"selftrain: {SAID}\n".encode())
    if (locks := sys.modules.get("selftrain.ssl_tasks.store.locks")) is not None:
        locks.release()
    os._exit(EXIT_CODE)


def _end(*_: object) -> None:
    global _told
    _told = True
    for number in SIGNALS:
        if signal.getsignal(number) == _end:
            signal.signal(number, lambda *_: leave())  # a second signal ends the process at once
    sys.unraisablehook = lambda _: None  # an interruption that cannot be raised further is not printed
    _thread.start_new_thread(_leave_later, ())  # not a thread of `threading`: the main thread may hold one of its locks
    raise KeyboardInterrupt


def _leave_later() -> None:
    time.sleep(LEAVE_SECONDS)
    leave()


def _hang_up(*_: object) -> None:
    """Handles SIGHUP, which a closing terminal sends up to three times; later ones must not disturb the first.

    It does not raise an error of its own, because Prefect may have replaced the handler of SIGTERM.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.raise_signal(signal.SIGTERM)
