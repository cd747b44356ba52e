"""Ctrl-C and a polite kill as a flag, so that a loop can end after its batch."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag while the body runs.

    A second signal of the same kind does what it did before, so that a user who does
    not want to wait does not have to. Outside the main thread, where Python lets nobody
    set handlers, the flag stays down.

    Yields:
        Tells whether a signal came.

    Example:
        >>> with interruptible() as is_interrupted:
        ...     signal.raise_signal(signal.SIGINT)
        ...     is_interrupted()
        True
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return

    def on_signal(number: int, _frame: object) -> None:
        flag.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield flag.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
