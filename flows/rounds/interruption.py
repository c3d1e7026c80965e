"""A person or a scheduler asks us to stop: SIGTERM, Ctrl-C and the end of the terminal end what we do.

A signal that was ignored when we were started (nohup, a job in the background of a script) stays ignored.
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
LEAVE_SECONDS = 3.0  # that a command has for its tidying where no work is in progress
EXIT_CODE = Interrupted.exit_code
SAID = "interrupted; run the same command again to continue"
_told = False  # whether a signal has asked this command to end


def end_on_signals() -> None:
    """From now on, each of the signals ends this process, which is a command's own, at whatever it does.

    They become KeyboardInterrupt. An import or a callback may swallow it, so a thread ends the process soon after:
    outside of `interruptible`, nothing that we do is harmed by a sudden end.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


@contextlib.contextmanager
def interruptible(message: str = "asked to stop") -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGHUP become Interrupted in the main thread. In other threads, signals are left to the main thread.

    Yields whether a signal has come: where the exception was swallowed, the next look at this still ends the work.
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
    if signal.getsignal(signal.SIGINT) == _end:  # work that has a checkpoint to write is given the time
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
            signal.signal(number, lambda *_: leave())  # who asks again does not wait
    sys.unraisablehook = lambda _: None  # where it cannot be raised further, it is no news
    _thread.start_new_thread(_leave_later, ())  # not threading's: the main thread may hold one of its locks
    raise KeyboardInterrupt


def _leave_later() -> None:
    time.sleep(LEAVE_SECONDS)
    leave()


def _hang_up(*_: object) -> None:
    """A terminal that goes tells us up to three times: the second must not disturb how the first is answered.

    Not an error of its own: by now, SIGTERM may be Prefect's.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.raise_signal(signal.SIGTERM)
