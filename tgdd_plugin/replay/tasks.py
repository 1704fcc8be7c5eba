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
    """One continual-learning task.

    Args:
        train, test: Real images; their ``classes`` are those of all tasks so far, the new ones last.
        new: The names of the classes that the images belong to.
    """

    train: ImagePool
    test: ImagePool
    new: list[str]


def split_classes(train: ImagePool, test: ImagePool, settings: ReplaySettings) -> list[Task]:
    """Makes class-incremental tasks: every class belongs to one of them.

    Raises:
        InputError: If there are fewer classes than tasks, or a class has no images.
    """
    count = train.num_classes
    if settings.tasks > count:
        raise InputError(
            f"`replay.tasks` must be at most {count}, the number of classes, got {settings.tasks}. Lower it."
        )
    order = torch.arange(count)
    if settings.order is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.order))
    names, place, tasks = [train.classes[i] for i in order.tolist()], order.argsort(), []
    for part in torch.arange(count).tensor_split(settings.tasks):
        seen = names[: int(part[-1]) + 1]
        pools = []
        for pool, purpose in ((train, "training"), (test, "test")):
            labels = place[pool.labels]
            index = torch.isin(labels, part).nonzero()[:, 0]
            missing = [names[i] for i in part.tolist() if not bool((labels == i).any())]
            if missing:
                raise InputError(
                    f"Class '{missing[0]}' has no {purpose} images. Give some of each class for training and test."
                )
            pools.append(ImagePool(pool.take(index), labels[index], seen))
        tasks.append(Task(pools[0], pools[1], [names[i] for i in part.tolist()]))
    return tasks


def check_tasks(tasks: Sequence[Task]) -> None:
    """Checks that tasks fit each other.

    Raises:
        InputError: If they do not, or there are none.
    """
    if not tasks:
        raise InputError("`tasks` must have at least one task, got none. Make them with split_classes().")
    names, shape = tasks[-1].train.classes, tasks[0].train.shape
    for number, task in enumerate(tasks, 1):
        seen, shapes = task.train.classes, (task.train.shape, task.test.shape)
        if seen != names[: len(seen)] or task.test.classes != seen:
            raise InputError(
                f"Task {number} must have the first classes of all tasks ({', '.join(names[:12])}) for training and "
                f"testing, got {', '.join(seen[:12])} for training and {', '.join(task.test.classes[:12])} for "
                f"testing. Classes keep their numbers, and new ones come last."
            )
        present = [seen[label] for label in task.train.counts.nonzero().flatten().tolist()]
        if sorted(present) != sorted(task.new):
            raise InputError(
                f"`new` of task {number} must be the classes that it has images of, {', '.join(present[:12])}, got "
                f"{', '.join(task.new[:12])}. Name those."
            )
        if shapes != (shape, shape):
            raise InputError(
                f"Task {number} must have images of {list(shape)} like the first task, got {list(shapes[0])} for "
                f"training and {list(shapes[1])} for testing. Give all images in one size."
            )
