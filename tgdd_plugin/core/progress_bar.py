"""One line of progress for a whole training; Composer prints one per epoch, too many for a thousand short epochs."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.core import TimeUnit
from composer.utils import dist
from tqdm.auto import tqdm

from tgdd_plugin.core.usage import in_words, peak_memory

SHARE, LONGEST, SHORTEST = 0.1, 600.0, 10.0
"""Into a file, a line comes with each tenth of the training, or after ten minutes, but not within ten seconds."""


class ProgressBar(Callback):
    """Shows on rank 0 how far a training is, its losses, the time left and the most memory that was taken.

    On a terminal, and in Jupyter, that is one line, which is written over twice a second: a compact set has hundreds of
    epochs a second. Anywhere else, such as in a file, it is a plain line now and then. What goes on from a checkpoint
    says so.

    Args:
        title: What the line begins with.
    """

    def __init__(self, title: str) -> None:
        self.title = title

    def fit_start(self, state: State, logger: Logger) -> None:
        assert state.max_duration is not None  # the Trainer checks this
        self.unit = state.max_duration.unit
        self.total = state.max_duration.value
        self.first = self._done(state)
        self._told = time.monotonic(), self.first
        self.bar: Any = None
        self.what = "epoch" if self.unit is TimeUnit.EPOCH else "step"
        if self.first and dist.get_global_rank() == 0:
            tqdm.write(f"{self.title}: goes on after {self.what} {self.first} of {self.total}", file=sys.stderr)
        notebook = type(sys.stderr).__module__.startswith("ipykernel")
        if dist.get_global_rank() == 0 and (sys.stderr.isatty() or notebook):
            unit = "ep" if self.unit is TimeUnit.EPOCH else "step"
            options: dict[str, Any] = {"mininterval": 0.5, "leave": False, "dynamic_ncols": True}
            self.bar = tqdm(total=self.total, initial=self.first, desc=self.title, unit=unit, **options)

    def batch_end(self, state: State, logger: Logger) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"{losses_in_words(state)}, {memory_in_words()}", refresh=False)
        if self.unit is TimeUnit.BATCH:
            self._tell(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        if self.unit is TimeUnit.EPOCH:
            self._tell(state)

    def close(self, state: State, logger: Logger) -> None:
        if getattr(self, "bar", None) is not None:
            self.bar.close()

    def _done(self, state: State) -> int:
        return int(state.timestamp.get(self.unit).value)

    def _tell(self, state: State) -> None:
        if self.bar is not None:
            self.bar.update()
            return
        done, now = self._done(state), time.monotonic()
        waited = now - self._told[0]
        due = done - self._told[1] >= SHARE * self.total or waited > LONGEST
        if not due or waited < SHORTEST or dist.get_global_rank() != 0 or done >= self.total:
            return
        left = waited / (done - self._told[1]) * (self.total - done)  # not by the first steps, which may be compiled
        self._told = now, done
        print(
            f"{self.title}: {self.what} {done} of {self.total}, {losses_in_words(state)}, {in_words(left)} left, "
            f"{memory_in_words()}",
            file=sys.stderr,
            flush=True,
        )


def losses_in_words(state: State) -> str:
    """The loss of the last batch and, where it has several, its terms."""
    losses = {name.rpartition("/")[2]: value for name, value in state.total_loss_dict.items()}
    return ", ".join(f"{'loss' if name == 'total' else name} {value:.3g}" for name, value in losses.items())


def memory_in_words() -> str:
    """The most memory that this process has taken so far, of a GPU if it uses one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_reserved() / 2**30:.2g} GiB of the GPU"
    return f"{peak_memory() / 2**30:.2g} GiB"
