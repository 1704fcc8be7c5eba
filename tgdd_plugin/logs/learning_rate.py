"""The learning rate that a step was made at, for the loggers."""

from __future__ import annotations

from composer import Callback, Logger, State


class UsedLearningRate(Callback):
    """Tells the loggers the learning rate of each step, under the names of Composer's ``LRMonitor``.

    That one looks after the scheduler has set the rate of the next step (Composer 0.32).
    """

    def after_train_batch(self, state: State, logger: Logger) -> None:
        for optimizer in state.optimizers:
            for number, group in enumerate(optimizer.param_groups):
                logger.log_metrics({f"lr-{type(optimizer).__name__}/group{number}": group["lr"]})
