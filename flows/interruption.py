"""A person or a scheduler asks us to stop: SIGTERM, or the end of the terminal, ends what we do as Ctrl-C does."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from ssl_tasks.errors import Interrupted


@contextlib.contextmanager
def interruptible(message: str = "asked to stop") -> Iterator[None]:
    """SIGTERM and SIGHUP become Interrupted in the main thread. Elsewhere, whoever owns it handles signals."""

    def interrupt(*_: object) -> None:
        raise Interrupted(message)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it stays ignored
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, _hang_up)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hang_up(*_: object) -> None:
    """A terminal that goes tells us up to three times: the second must not disturb how the first is answered.

    Not an error of its own: by now, SIGTERM may be Prefect's.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.raise_signal(signal.SIGTERM)
