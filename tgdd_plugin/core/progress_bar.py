"""One progress bar for a whole training; Composer prints one per epoch, too many for a thousand short epochs."""

from __future__ import annotations

import sys

from composer import Callback, Logger, State
from composer.core import TimeUnit
from composer.utils import dist
from tqdm.auto import tqdm


class ProgressBar(Callback):
    """Shows the progress of training on rank 0, in the unit of its ``max_duration`` (epochs or batches), and the loss.

    Args:
        title: The text before the bar.
    """

    def __init__(self, title: str) -> None:
        self.title = title

    def fit_start(self, state: State, logger: Logger) -> None:
        assert state.max_duration is not None  # the Trainer checks this
        self.unit = state.max_duration.unit
        self.bar = tqdm(
            total=state.max_duration.value,
            initial=state.timestamp.get(self.unit).value,
            desc=self.title,
            unit="ep" if self.unit is TimeUnit.EPOCH else "step",
            # Twice a second is enough: a compact set has hundreds of epochs a second. Into a file, twice a minute.
            mininterval=0.5 if sys.stderr.isatty() else 30,
            leave=False,
            disable=dist.get_global_rank() != 0,
        )

    def batch_end(self, state: State, logger: Logger) -> None:
        self.bar.set_postfix(loss=f"{state.total_loss_dict.get('loss/train/total', float('nan')):.3g}", refresh=False)
        if self.unit is TimeUnit.BATCH:
            self.bar.update()

    def epoch_end(self, state: State, logger: Logger) -> None:
        if self.unit is TimeUnit.EPOCH:
            self.bar.update()

    def close(self, state: State, logger: Logger) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
