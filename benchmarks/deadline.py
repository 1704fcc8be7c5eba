"""An end by the clock: what is being trained is saved as a Composer checkpoint, from which the same command goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from composer import Callback, Logger, State
from composer.core import Event


class TimeUp(Exception):
    """The time is up, and what was being done is saved."""


class Deadline(Callback):
    """Saves a checkpoint of what is being trained when the time is up, then raises :class:`TimeUp`.

    Every minute it saves one anyway, for whoever is killed.

    Args:
        minutes: From now on; ``None`` for no end.
    """

    def __init__(self, minutes: float | None) -> None:
        self.saved = time.monotonic()
        self.end = self.saved + (math.inf if minutes is None else 60 * minutes)
        self.stopping = False

    def over(self) -> bool:
        return time.monotonic() >= self.end

    def due(self, wanted: Event) -> Callable[[State, Event], bool]:
        """Composer's ``save_interval``: whether to save at ``wanted``, the end of a batch or of an epoch."""

        def save(state: State, event: Event) -> bool:
            assert state.max_duration is not None
            if event is not wanted or state.timestamp >= state.max_duration:  # a finished one cannot be taken up
                return False
            self.stopping = self.over()
            if not self.stopping and time.monotonic() < self.saved + 60:
                return False
            self.saved = time.monotonic()
            return True

        return save

    def batch_start(self, state: State, logger: Logger) -> None:
        if self.stopping:
            raise TimeUp

    def check(self) -> None:
        """Between two pieces of work."""
        if self.over():
            raise TimeUp
