"""What the loggers are told of a distillation beside its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer import Callback, Logger, State

from tgdd_plugin.distillation.probe import Probe
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.logs.destinations import takes_pictures
from tgdd_plugin.logs.settings import LoggerSettings

LOGGED: Mapping[str, str] = {
    "loss": "loss/train/total",
    "match": "loss/train/match",
    "constraint": "loss/train/constraint",
    "learning_rate": "lr-SGD/group0",
    "gradient_norm": "tgdd/gradient_norm",
    "probe_accuracy": "tgdd/probe_accuracy",
}
"""The columns of a distillation's log, and the names of their metrics."""


class DistillationLog(Callback):
    """Tells the loggers the settings, the norm of the pixels' gradient, the images, and how well a network learns them.

    Args:
        synthetic: The images.
        start: What they were at the start, decoded, uint8 ``(N, C, H, W)``.
        settings: The settings by name, with what was worked out, ``steps`` among them.
        classes: The names of the classes.
        logs: How often there are pictures, of the images beside those at the start, and probes.
        probe: Trains a network on the images as they are; ``None`` for no probes.
    """

    def __init__(
        self,
        synthetic: SyntheticImages,
        start: torch.Tensor,
        settings: Mapping[str, Any],
        classes: Sequence[str],
        logs: LoggerSettings,
        probe: Probe | None,
    ) -> None:
        self.synthetic = synthetic
        self.settings = settings
        self.classes = classes
        self.logs = logs
        self.probe = probe
        self._start = start
        self._norm: torch.Tensor | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        logger.log_hyperparameters(dict(self.settings))
        if state.timestamp.batch.value == 0:
            self._look(0, logger)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        if logger.destinations:
            self._norm = self.synthetic.gradient_norm()  # all of it is there, and the step is yet to come

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        if self._norm is not None:
            logger.log_metrics({LOGGED["gradient_norm"]: float(self._norm)}, step - 1)  # as this step's losses
        self._look(step, logger)

    def _look(self, step: int, logger: Logger) -> None:
        last = step == self.settings["steps"]
        if _is_due(step, self.logs.image_interval, last) and takes_pictures(logger):
            from tgdd_plugin.data.set_figure import set_picture  # loads matplotlib, which takes a second

            picture = set_picture(*self.synthetic.to_uint8(), self.classes, start=self._start)
            logger.log_images(picture, name="tgdd/synthetic", step=step)
        if self.probe and _is_due(step, self.logs.probe_interval, last) and logger.destinations:
            accuracy = self.probe(*self.synthetic.to_uint8())
            if accuracy is not None:
                logger.log_metrics({LOGGED["probe_accuracy"]: accuracy}, step)


def _is_due(step: int, interval: int, last: bool) -> bool:
    return interval > 0 and (last or step % interval == 0)
