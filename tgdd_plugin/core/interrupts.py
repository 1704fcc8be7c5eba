"""Ctrl-C: that it waits while something is written that must be whole, and how it is told from other ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALLED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""The codes with which Composer's handlers of these signals exit."""


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception is a signal to the program, such as Ctrl-C, and not an exit or error of the code in it."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in _SIGNALLED)


class HeldInterrupts:
    """Holds Ctrl-C (SIGINT) back inside a ``with`` block, at whose end it is handled, except where it is let through.

    Does nothing outside the main thread, where Python raises none, and where Ctrl-C is ignored.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: Any = None

    def __enter__(self) -> HeldInterrupts:
        self._before = signal.getsignal(signal.SIGINT)
        self._handle_by(self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle_by(self._before)
        self._raise_held()

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """Lets Ctrl-C end a block within this one, as it would outside; one that was held so far ends it at once."""
        self._handle_by(self._before)
        try:
            self._raise_held()
            yield
        finally:
            self._handle_by(self._hold)

    def _handle_by(self, handler: Any) -> None:
        raised = self._before not in (None, signal.SIG_IGN) and threading.current_thread() is threading.main_thread()
        if raised:
            signal.signal(signal.SIGINT, handler)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def _raise_held(self) -> None:
        came, self._came = self._came, False
        if came:
            signal.raise_signal(signal.SIGINT)  # to whoever handled it before
