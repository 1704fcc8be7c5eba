"""Composer's loggers as the settings ask for them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from composer.loggers import LoggerDestination, MLFlowLogger, TensorboardLogger, WandBLogger
from composer.utils import dist

from tgdd_plugin.core.errors import InputError, brief
from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.logs.csv_logger import CSVLogger
from tgdd_plugin.logs.settings import LoggerSettings

EXPERIMENT = "tgdd"
"""The name of MLflow's experiment, unless MLFLOW_EXPERIMENT_NAME says otherwise."""


def as_log_settings(
    loggers: LoggerDestination | Sequence[LoggerDestination] | LoggerSettings | Mapping[str, Any] | None,
    **given: Any,
) -> tuple[LoggerSettings, list[LoggerDestination]]:
    """Returns the settings of the logs, and the loggers that a user made, of an argument that may be either.

    Args:
        loggers: The argument.
        given: Settings that were given beside it; ``None`` leaves them as they are.

    Raises:
        InputError: If it is neither, or a setting cannot be used.
    """
    settings, own = LoggerSettings(), []
    if loggers is None or isinstance(loggers, LoggerSettings | Mapping):
        settings = as_settings(LoggerSettings, loggers)
    else:
        own = [loggers] if isinstance(loggers, LoggerDestination) else list(loggers)
    settings.check_installed()
    return replace(settings, **{name: value for name, value in given.items() if value is not None}), own


def make_loggers(
    settings: LoggerSettings, name: str, group: str | None = None, *, resumed: bool | None = None
) -> list[LoggerDestination]:
    """Makes Composer's loggers for one training. One that cannot be made is left out, with a warning.

    Args:
        settings: Which ones.
        name: The name of the training, as they show it.
        group: The name of what it belongs to. Default: ``None``, it stands alone.
        resumed: Whether it goes on from a checkpoint, for a training whose name no other one has: MLflow and Weights &
            Biases then go on with its run. Default: ``None``, each training is a run of its own.

    Raises:
        InputError: With several ranks, if one cannot be made: the others would wait for it.
    """
    makers: dict[str, Callable[[], LoggerDestination]] = {}
    if (folder := settings.tensorboard) is not None:
        makers["tensorboard"] = lambda: EventFiles(str(Path(folder, group or "")), name)
    if (project := settings.wandb) is not None:
        keywords = {} if resumed is None else {"id": name, "resume": "allow" if resumed else None}
        makers["wandb"] = lambda: WandBLogger(project, group, name, init_kwargs=keywords)
    if (uri := settings.mlflow) is not None:
        makers["mlflow"] = lambda: MLFlowLogger(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT),
            f"{group} {name}" if group else name,
            tracking_uri=uri,
            run_group=group,
            resume=bool(resumed),
            log_system_metrics=False,
        )
    made = []
    for kind, make in makers.items():
        try:
            made.append(make())
        except Exception as error:
            if dist.get_world_size() > 1:
                raise InputError(f"`loggers.{kind}` cannot be set up ({brief(error)}). Leave it out.") from error
            warnings.warn(
                f"the logger {kind} cannot be set up, and is left out, while the work goes on: {brief(error)}",
                stacklevel=2,
            )
    return made


@dataclass(frozen=True)
class TrainingLogs:
    """Makes the loggers of each of several trainings.

    Args:
        settings: Which ones.
        group: The name of what the trainings belong to.
        csv: The file that gets a row for a step of each, if the settings say so. Default: ``None``, none.
        columns: The columns of that file, see :class:`CSVLogger`.
        own: Loggers of the user's own, which are the same for all trainings. Default: none.
    """

    settings: LoggerSettings
    group: str
    csv: Path | None
    columns: Mapping[str, str]
    own: Sequence[LoggerDestination] = ()

    def of(self, name: str, about: Mapping[str, Any] | None = None) -> list[LoggerDestination]:
        """Returns the loggers of one training.

        Args:
            name: Its name.
            about: What the rows of the CSV file say of it, by column; the same columns for all trainings.
        """
        safe = re.sub(r"[^\w.-]+", "-", name)
        made = make_loggers(self.settings, safe, self.group)
        if self.settings.csv and self.csv is not None:
            made.insert(0, CSVLogger(self.csv, self.columns, about=about, most=1_000))
        return [*made, *self.own]


class EventFiles(TensorboardLogger):
    """Composer's logger for TensorBoard, for trainings of many short epochs and without an evaluation.

    Composer's begins a new file at the end of each epoch, and writes the hyperparameters after an evaluation only.

    Args:
        log_dir: The folder of all trainings.
        name: The name of the training, whose folder in that it is.
    """

    def __init__(self, log_dir: str, name: str) -> None:
        super().__init__(log_dir, flush_interval=1000)
        self.name = name

    def init(self, state: State, logger: Logger) -> None:
        self.run_name = self.name
        self._initialize_summary_writer()

    def epoch_end(self, state: State, logger: Logger) -> None:
        pass

    def fit_end(self, state: State, logger: Logger) -> None:
        self.eval_end(state, logger)


class Hyperparameters(Callback):
    """Tells the loggers the settings of a training.

    Args:
        settings: The settings, by name.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def fit_start(self, state: State, logger: Logger) -> None:
        logger.log_hyperparameters(self.settings)


def takes_pictures(logger: Logger) -> bool:
    """Whether any of a Trainer's loggers does something with pictures."""
    return any(type(each).log_images is not LoggerDestination.log_images for each in logger.destinations)
