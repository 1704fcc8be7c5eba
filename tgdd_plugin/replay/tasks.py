"""The tasks of a continual learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.replay.settings import ReplaySettings


@dataclass(frozen=True)
class Task:
    """What comes at once.

    Args:
        train, test: Real images, whose classes are those of all tasks so far, the new ones last.
        new: Names of the classes that the images are of.
    """

    train: ImagePool
    test: ImagePool
    new: list[str]


def split_classes(train: ImagePool, test: ImagePool, settings: ReplaySettings) -> list[Task]:
    """Class-incremental tasks: every class belongs to one.

    Raises:
        InputError: If there are fewer classes than tasks, or a class has no images.
    """
    count = train.num_classes
    if settings.tasks > count:
        raise InputError(f"{count} classes cannot be split into {settings.tasks} tasks; lower tasks (replay.tasks)")
    order = torch.arange(count)
    if settings.order is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.order))
    names, place, tasks = [train.classes[i] for i in order.tolist()], order.argsort(), []
    for part in torch.arange(count).tensor_split(settings.tasks):
        seen = names[: int(part[-1]) + 1]
        pools = []
        for pool in (train, test):
            labels = place[pool.labels]
            index = torch.isin(labels, part).nonzero()[:, 0]
            missing = [names[i] for i in part.tolist() if not bool((labels == i).any())]
            if missing:
                raise InputError(f"class '{missing[0]}' has no images; a task needs some of each for training and test")
            pools.append(ImagePool(pool.take(index), labels[index], seen))
        tasks.append(Task(pools[0], pools[1], [names[i] for i in part.tolist()]))
    return tasks


def _check(tasks: Sequence[Task]) -> None:
    """Raises an InputError if the tasks do not fit each other."""
    if not tasks:
        raise InputError("no tasks came; wanted at least one")
    names, shape = tasks[-1].train.classes, tasks[0].train.shape
    for number, task in enumerate(tasks, 1):
        seen, shapes = task.train.classes, (task.train.shape, task.test.shape)
        if seen != names[: len(seen)] or task.test.classes != seen:
            raise InputError(
                f"task {number} has the classes {', '.join(seen[:12])} for training and "
                f"{', '.join(task.test.classes[:12])} for testing, all tasks {', '.join(names[:12])}; wanted the first "
                f"of these for both: classes keep their numbers, and new ones come last"
            )
        held = [seen[label] for label in task.train.counts.nonzero().flatten().tolist()]
        if sorted(held) != sorted(task.new):
            raise InputError(
                f"task {number} has images of {', '.join(held[:12])}, but its new classes are "
                f"{', '.join(task.new[:12])}; name those that it has images of"
            )
        if shapes != (shape, shape):
            raise InputError(
                f"task {number} has images of {list(shapes[0])} for training and {list(shapes[1])} for testing, the "
                f"first task {list(shape)}; give all of one size"
            )
