"""The tasks of a continual learner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tgdd_plugin.beton.compatibility import fitting_images
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.replay.settings import ReplaySettings, task_sizes


@dataclass(frozen=True)
class Task:
    """One continual-learning task.

    Args:
        train, test: Real images; their ``classes`` are those of all tasks so far, the new ones last.
        new: The names of the classes that the training images belong to.
    """

    train: ImagePool
    test: ImagePool
    new: list[str]


def split_classes(train: Any, test: Any, settings: ReplaySettings) -> list[Task]:
    """Makes class-incremental tasks: every class has its first images and its test images in one of them.

    Args:
        train, test: Real images: :class:`ImagePool` or any data set that :meth:`ImagePool.from_dataset` takes.
        settings: ``tasks``, ``order`` and ``returning`` say how.

    Raises:
        InputError: If the classes cannot be split so, a class has no images, or the test images have another size or
            other classes.
    """
    train, test = (ImagePool.from_dataset(each) for each in (train, test))
    remedy = "Give test images of the same size and classes."
    test = fitting_images(test, "test", train.classes, train.shape, "the training images", remedy)
    count = train.num_classes
    order = torch.arange(count)
    if settings.order is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.order))
    names, place = [train.classes[i] for i in order.tolist()], order.argsort()
    parts = torch.arange(count).split(task_sizes(settings.tasks, count))
    first = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
    labels, test_labels = place[train.labels], place[test.labels]
    when = first[labels]
    if settings.returning is not None:
        when = _with_returning(labels, when, len(parts), settings)
    tasks = []
    for number, part in enumerate(parts):
        seen = names[: int(part[-1]) + 1]
        index, test_index = (when == number).nonzero()[:, 0], (first[test_labels] == number).nonzero()[:, 0]
        for there, purpose in ((labels[index], "training"), (test_labels[test_index], "test")):
            if missing := [names[i] for i in part.tolist() if not bool((there == i).any())]:
                raise InputError(
                    f"Class '{missing[0]}' has no {purpose} images. Give some of each class for training and test."
                )
        new = [names[i] for i in labels[index].unique().tolist()]
        tasks.append(
            Task(
                ImagePool(train.take(index), labels[index], seen),
                ImagePool(test.take(test_index), test_labels[test_index], seen),
                new,
            )
        )
    return tasks


def _with_returning(labels: torch.Tensor, when: torch.Tensor, tasks: int, settings: ReplaySettings) -> torch.Tensor:
    """The task of each training image ``(N,)``, where a share of each class comes in the tasks after its first one."""
    generator, when = torch.Generator().manual_seed(settings.order or 0), when.clone()
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        number = int(when[own[0]])
        if later := tasks - 1 - number:
            share = round(len(own) * (settings.returning or 0))
            back = own[torch.randperm(len(own), generator=generator)[:share]]
            when[back] = number + 1 + torch.arange(share) % later
    return when


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
        present = task.train.names_of(present_classes(task.train))
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


def check_real_images(tasks: Sequence[Task], needed: int) -> None:
    """Checks that every class has the images that a memory of both kinds keeps: none is made up, as starts may be.

    Args:
        tasks: The tasks.
        needed: The number of real images of each class, those that the distilled ones start from included.

    Raises:
        InputError: If not.
    """
    for name, have in _rarest(tasks):
        if have < needed:
            raise InputError(
                f"Class '{name}' must have at least {needed} images in each of its tasks for the policy 'hybrid', got "
                f"{have}. Lower images_per_class, the factor, replay.real_share or replay.returning, or add images."
            )


def check_enough_images(tasks: Sequence[Task], count: int) -> None:
    """Checks that every class of every task has ``count`` training images.

    Raises:
        InputError: If not.
    """
    for name, have in _rarest(tasks):
        if have < count:
            raise InputError(
                f"`images_per_class` must be at most {have}, as class '{name}' has {have} images in its task, got "
                f"{count}. Lower it, or add images of that class."
            )


def _rarest(tasks: Sequence[Task]) -> Iterator[tuple[str, int]]:
    """The name of each task's rarest class, among those that have images, and how many it has."""
    for task in tasks:
        present = present_classes(task.train)
        rarest = int(present[task.train.counts[present].argmin()])
        yield task.train.classes[rarest], int(task.train.counts[rarest])


def present_classes(pool: ImagePool) -> torch.Tensor:
    """The ids of the classes that have images, in rising order."""
    return pool.counts.nonzero().flatten()


def check_policy(policy: object, key: str) -> None:
    """Raises an InputError if ``policy``, given as ``key``, cannot be called: before the training, not after it."""
    if not callable(policy):
        raise InputError(
            f"`{key}` must be a function, one of tgdd_plugin.replay.policies, got a {type(policy).__name__}. Give, for "
            f"example, distilled(DistillSettings(...))."
        )
