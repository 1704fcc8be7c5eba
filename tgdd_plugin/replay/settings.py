"""How tasks are made and old ones replayed: every setting and its default."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import Count, NonNegativeInt, Positive, ProperShare, Seed, Share, settings_class
from tgdd_plugin.distillation.settings import DistillSettings, SizedSettings

PolicyName = Literal["random", "reservoir", "herding", "distilled", "hybrid"]


def real_images(count: int, share: float) -> int:
    """How many of ``count`` images of a class are real in a memory of both kinds.

    Of two or more, at least one is of either kind; a single one is distilled.
    """
    return 0 if count == 1 else min(max(1, round(count * share)), count - 1)


def memory_settings(settings: DistillSettings) -> SizedSettings:
    """The settings by which a memory's classes are distilled, their size settled; the factor is 1 where none is given.

    Raises:
        InputError: If they name a budget.
    """
    if settings.budget is not None:
        raise InputError(
            f"`distill.budget` must be null in replay, got {settings.budget}: a memory keeps distill.images_per_class "
            f"images of each class. Leave it out."
        )
    return replace(settings, factor=settings.factor or 1).sized(1)


@settings_class
class ReplaySettings:
    """How tasks are made and old ones replayed.

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    tasks: Count | tuple[Count, ...] = 5
    """Into how many tasks the classes are split, as evenly as may be; or how many classes each task has, in a list."""
    order: Seed | None = None
    """Seed of the order of the classes. null: as the data has them."""
    returning: ProperShare | None = None
    """Share of each class's training images that come in later tasks, spread evenly over them: classes that come back,
    and share their images in the memory among their tasks. The test images belong to the first task. null: none."""
    heads: Literal["one", "task"] = "one"
    """one: the network is not told the task, and chooses among all classes so far (class-incremental). task: a head for
    each task, and the network is told the task of an image (task-incremental)."""
    ratio: Positive = 1.0
    """Images from the memory for each new image in a batch."""
    weight: Share | None = None
    """Share of the memory in the loss, from 0 to 1. null: every image counts alike."""
    finetune_epochs: NonNegativeInt = 0
    """Epochs of training on the memory alone after each task, once the memory has the task's classes, too: balanced
    fine-tuning (F. M. Castro et al., "End-to-End Incremental Learning", ECCV 2018), at a tenth of the training's
    learning rate as there. What tells a kept image from a new one is then no longer what tells old classes from new
    ones."""
    policy: PolicyName = "distilled"
    """What the memory keeps of a task, distill.images_per_class images of each class. random: real images, drawn;
    herding: real images that iCaRL's herding selects; reservoir: a uniform sample of all images so far, as many in all;
    distilled: images distilled as the section distill says; hybrid: a real_share of herding's, the others distilled."""
    real_share: Share = 0.5
    """Of the policy hybrid: the share of real images among those that are kept of a class in a task, at least one of
    each kind where that is two or more; of a class that comes back, herding chooses among each task's, whatever their
    kind. Where distill.source is exemplars or recorded, the real ones are chosen among the trajectory's."""


def task_sizes(tasks: int | tuple[int, ...], count: int) -> list[int]:
    """How many of ``count`` classes each task has, by ``tasks`` of the settings.

    Raises:
        InputError: If that is impossible.
    """
    if isinstance(tasks, tuple):
        if sum(tasks) != count:
            raise InputError(
                f"`replay.tasks` must add up to {count}, the number of classes, got {list(tasks)}, which is "
                f"{sum(tasks)}. Say for each task how many classes it has."
            )
        return list(tasks)
    if tasks > count:
        raise InputError(f"`replay.tasks` must be at most {count}, the number of classes, got {tasks}. Lower it.")
    return [count // tasks + (number < count % tasks) for number in range(tasks)]
