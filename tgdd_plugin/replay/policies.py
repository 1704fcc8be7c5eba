"""What a continual learner keeps of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.distiller import distill
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.replay.sources import Source
from tgdd_plugin.replay.tasks import Task


@dataclass(frozen=True)
class Moment:
    """The end of a task's training: what there is to make a memory of.

    Args:
        task: The task.
        network: As trained, on the device.
        folder: Of the task, for files.
        trajectory: The trajectory folder of the training.
        seed: Of the learner.
    """

    task: Task
    network: nn.Module
    folder: Path
    trajectory: Path
    seed: int


def distilled(settings: DistillSettings, **options: Any) -> Callable[[Moment], Source]:
    """What to keep of a task: its classes, distilled from its own trajectory.

    Args:
        settings: Of the distillation; with ``source='recorded'`` none of the task's images is read.
        options: More of :func:`tgdd_plugin.distill`.

    Raises:
        InputError: If the settings name classes.
    """
    if settings.classes is not None:
        raise InputError(f"classes is {settings.classes}, but each task has its own; leave it out (distill.classes)")

    def remember(moment: Moment) -> Source:
        path = moment.folder / "distilled.beton"
        real = None if settings.source == "recorded" else moment.task.train
        own = replace(settings, classes=moment.task.new)
        return distill(moment.trajectory, real, path, own, network=moment.network, **options)

    return remember
