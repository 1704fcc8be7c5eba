"""Running the Trainer of a training: its optimizer, schedule, duration, and what is seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger
from composer.core import Algorithm, State
from composer.loggers import LoggerDestination
from composer.models import ComposerModel
from composer.optim import ComposerScheduler, MultiStepScheduler
from composer.utils import ensure_tuple

from tgdd_plugin.core.progress_bar import ProgressBar
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.logs.destinations import Hyperparameters
from tgdd_plugin.logs.learning_rate import UsedLearningRate
from tgdd_plugin.training.classifier import Float32Fallback
from tgdd_plugin.training.engine import Engine
from tgdd_plugin.training.resuming import Checkpoints, DueEveryMinute, last_checkpoint, remove_if_unusable
from tgdd_plugin.training.running import run
from tgdd_plugin.training.settings import Schedule, TrainSettings
from tgdd_plugin.training.vectorized import Population

WARM_UP = 0.3
"""Share of a one-cycle training in which the learning rate rises."""

LOGGED = {
    "loss": "loss/train/mean",
    "learning_rate": "lr-SGD/group0",
}
"""The columns of a training's log, and the names of their metrics."""

ACCURACY = {"accuracy": "metrics/train/MulticlassAccuracy"}
"""One more where the accuracy on the training images is computed."""


OWN_CHECKPOINTS = ("save_", "load_", "autoresume")
"""What the Trainer's arguments begin with that save or load checkpoints."""


def count_batches(settings: TrainSettings, loader: Any) -> int:
    """How many batches a training has."""
    return loader.batches_of(settings.passes) if settings.passes else settings.epochs * len(loader)


def fit(
    model: ComposerModel,
    engine: Engine,
    loader: Any,
    algorithms: list[Algorithm],
    settings: TrainSettings,
    logs: Sequence[LoggerDestination],
    /,
    *,
    title: str | None = None,
    callbacks: Callback | Sequence[Callback] | None = None,
    loggers: LoggerDestination | Sequence[LoggerDestination] | None = None,
    checkpoints: Path | None = None,
    recorded: bool = False,
    **trainer_options: Any,
) -> float:
    """Trains a model.

    Args:
        model: The model, which computes by ``engine``.
        engine: What goes back to float32 where bf16 fails.
        loader: The batches.
        algorithms: What changes them, in this order.
        settings: How it is trained.
        logs: Loggers of ours.
        title: The title of a progress bar. Default: ``None``, no bar.
        callbacks, loggers: The user's own, beside ours.
        checkpoints: The folder of its checkpoints, from which it goes on; see :mod:`tgdd_plugin.training.resuming`.
            Where ``trainer_options`` save or load checkpoints, these are the only ones. Default: ``None``, none.
        recorded: Whether a callback records it, see :class:`tgdd_plugin.training.resuming.DueEveryMinute`. Default:
            ``False``.
        trainer_options: More arguments for the Trainer; they override ours.

    Returns:
        The seconds that the training had taken before it was resumed.
    """
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
    schedulers: dict[Schedule, ComposerScheduler] = {
        "steps": MultiStepScheduler(["0.666667dur", "0.833333dur"], gamma=0.2),
        "one-cycle": one_cycle,
    }
    all_loggers = [*logs, *ensure_tuple(loggers)]
    observers = [MeanLoss(model), UsedLearningRate(), Hyperparameters(asdict(settings))]
    telling: list[Callback] = observers if all_loggers else []
    shown = [ProgressBar(title)] if title else []
    ours: dict[str, Any] = {
        "optimizers": optimizer,
        "schedulers": schedulers[settings.schedule],
        "algorithms": algorithms,
        "callbacks": [Float32Fallback(engine), *telling, *shown, *ensure_tuple(callbacks)],
        "loggers": all_loggers,
        "precision": "fp32",
        "progress_bar": False,
    }
    if checkpoints is not None and not any(name.startswith(OWN_CHECKPOINTS) for name in trainer_options):
        remove_if_unusable(checkpoints, only_plain=True)
        ours["callbacks"].append(Checkpoints(checkpoints, DueEveryMinute(recorded=recorded)))
        ours["load_path"] = last_checkpoint(checkpoints)
    in_batches = settings.passes is not None or settings.schedule == "one-cycle"
    duration = f"{count_batches(settings, loader)}ba" if in_batches else f"{settings.epochs}ep"
    with forked_streams():  # the Trainer seeds the global ones
        return run(model=model, train_dataloader=loader, max_duration=duration, **{**ours, **trainer_options})


class MeanLoss(Callback):
    """Tells the loggers the mean loss of networks that are trained at once, whose total loss is the sum of theirs.

    Args:
        model: What is trained.
    """

    def __init__(self, model: ComposerModel) -> None:
        self.networks = len(model.module.networks) if isinstance(model, Population) else 1

    def batch_end(self, state: State, logger: Logger) -> None:
        mean = state.total_loss_dict["loss/train/total"] / self.networks
        logger.log_metrics({"loss/train/mean": mean}, state.timestamp.batch.value - 1)


def one_cycle(state: State, ssr: float = 1.0) -> float:
    """The share of the highest learning rate by the middle of a batch, never 0 (L. N. Smith, arXiv 1803.09820).

    Composer sets a rate after each batch, from how many there were before that one: the first rate counts for two
    batches, and each later one comes a batch late. Its own LinearWithWarmupScheduler gives the first batches a rate of
    0, and warns where there are few.
    """
    assert state.max_duration is not None  # in batches
    done = (state.timestamp.batch.value + 0.5) / state.max_duration.value
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))
