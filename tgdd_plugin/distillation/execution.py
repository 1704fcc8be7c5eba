"""Running the distillation's Trainer, with smaller chunks where memory is short."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from composer import Callback, DataSpec
from composer.algorithms import EMA
from composer.core import Time
from composer.loggers import LoggerDestination
from composer.optim import LinearScheduler
from composer.utils import dist

from tgdd_plugin.core.device import Device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.progress_bar import ProgressBar
from tgdd_plugin.distillation.logs import LOGGED, DistillationLog
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.monitoring import DistillationMonitor
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.logs.csv_logger import CSVLogger
from tgdd_plugin.logs.destinations import make_loggers
from tgdd_plugin.logs.learning_rate import UsedLearningRate
from tgdd_plugin.logs.log_file import log_path
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.training.resuming import last_checkpoint, remove_if_unusable
from tgdd_plugin.training.running import run

T = TypeVar("T")


@dataclass(frozen=True)
class RunOptions:
    """How a distillation runs: what the user chose that the images do not depend on.

    Args:
        device: ``'cpu'``, ``'gpu'`` or ``None``, as Composer takes it.
        checkpoint_interval: How often to save, as a Composer time string.
        logs: Which logs are kept, and how often pictures are sent to ``loggers``.
        loggers, callbacks: The user's own, for the Trainer.
        progress_bar: Whether to show a progress bar.
        trainer_options: More arguments for Composer's ``Trainer``; they override ours.
        picture: Where to draw the images at the end. Default: ``None``, nowhere.

    Raises:
        InputError: If ``checkpoint_interval`` is not a Composer time string.
    """

    device: Device | None
    checkpoint_interval: str
    logs: LoggerSettings
    loggers: Sequence[LoggerDestination]
    callbacks: Sequence[Callback]
    progress_bar: bool
    trainer_options: Mapping[str, Any]
    picture: str | Path | None = None

    def __post_init__(self) -> None:
        try:
            Time.from_timestring(self.checkpoint_interval)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"`checkpoint_interval` must be a Composer time string, got {self.checkpoint_interval!r}. Write it "
                f"like '60sec' or '500ba'."
            ) from error


def trainer_arguments(
    model: DistillationModel,
    draws: Draws,
    rate: float,
    options: RunOptions,
    checkpoints: Path,
    output: Path,
    log: DistillationLog,
) -> Callable[[int], dict[str, Any]]:
    """Returns a function from a number of classes to the arguments of a Trainer that takes so many at a time.

    Args:
        model: The model to train.
        draws: The batches of its steps, and the resolved settings.
        rate: The learning rate of SGD on the pixels.
        options: How the distillation runs.
        checkpoints: The folder of its checkpoints, which has the name of the run.
        output: The file that is made.
        log: What tells the loggers more than the losses.
    """
    synthetic, settings = model.synthetic, draws.settings
    optimizer = torch.optim.SGD(synthetic.parameters(), lr=rate)
    # Right after the step, so that whatever looks at the pixels next (EMA, a checkpoint) finds them in [0, 1].
    optimizer.register_step_post_hook(lambda *_: synthetic.clamp_())

    # A user's own callbacks may keep what they like.
    remove_if_unusable(checkpoints, only_plain=not (options.callbacks or options.loggers or options.trainer_options))
    run_name = checkpoints.name.removeprefix(".")
    loggers = [
        *([CSVLogger(log_path(output), LOGGED)] if options.logs.csv else []),
        *make_loggers(options.logs, run_name, resumed=last_checkpoint(checkpoints) is not None),
        *options.loggers,
    ]

    def arguments(chunk: int) -> dict[str, Any]:
        monitors: list[Callback] = [DistillationMonitor(model, settings.steps), log, UsedLearningRate()]
        if options.progress_bar:
            monitors.append(ProgressBar("distilling"))
        return {
            "model": model,
            "train_dataloader": DataSpec(
                range(settings.steps),
                batch_transforms=draws,
                get_num_samples_in_batch=lambda batch: len(batch["classes"]),
            ),
            "max_duration": f"{settings.steps}ba",
            "optimizers": optimizer,
            "schedulers": [LinearScheduler(alpha_f=0.0)] if settings.schedule == "linear" else [],
            "algorithms": [EMA(half_life=settings.ema, update_interval="1ba")] if settings.ema else [],
            "callbacks": [*monitors, *options.callbacks],
            "loggers": loggers,
            "device": options.device,
            "device_train_microbatch_size": chunk,
            "precision": "fp32",
            "progress_bar": False,
            "seed": settings.seed,
            "run_name": run_name,
            # By CheckpointSaver, as EMA leaves its average in the model only where one saves; without a checkpoint,
            # autoresume would ask the user's loggers, and some have no answer.
            "autoresume": last_checkpoint(checkpoints) is not None,
            "save_folder": str(checkpoints),
            "save_interval": options.checkpoint_interval,
            "save_overwrite": True,
            "save_num_checkpoints_to_keep": 1,
            **options.trainer_options,
        }

    return arguments


def fit(arguments: Callable[[int], dict[str, Any]], chunk: int, synthetic: SyntheticImages) -> None:
    """Runs a Trainer; when a chunk of classes does not fit in memory, another one with half of it.

    That one goes on from the last checkpoint, or from the start images if there is none yet.

    Args:
        arguments: A function from a number of classes to the Trainer's arguments; see :func:`trainer_arguments`.
        chunk: The number of classes to begin with.
        synthetic: The images that it trains.

    Raises:
        InputError: If even a single class does not fit in memory, or, on several ranks, the first chunk does not.
    """
    start = synthetic.pixels.detach().clone()

    def attempt(chunk: int) -> None:
        with torch.no_grad():
            synthetic.pixels.copy_(start)
        run(**arguments(chunk))

    halving(attempt, chunk)


def halving(attempt: Callable[[int], T], chunk: int) -> tuple[T, int]:
    """Calls a function of a number of classes, again with half of them for as long as memory runs out.

    Args:
        attempt: The function.
        chunk: The number of classes to begin with.

    Returns:
        What it returned, and the number that it did so for.

    Raises:
        InputError: If even a single class does not fit in memory, or, on several ranks, the first chunk does not.
    """
    while True:
        try:
            return attempt(chunk), chunk
        except RuntimeError as error:  # torch has a class of its own for GPUs only
            if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error):
                raise
            if chunk == 1 or dist.get_world_size() > 1:  # other ranks would wait for this one's Trainer
                remedy = "Lower classes_per_chunk" if chunk > 1 else "Lower real_per_class or max_decoded"
                raise InputError(f"{chunk} class(es) at a time do not fit in memory. {remedy}.") from None
        warnings.warn(f"{chunk} classes at a time do not fit in memory; going on with {(chunk + 1) // 2}", stacklevel=2)
        chunk = (chunk + 1) // 2
