"""Replay policies: what a continual learner adds to its memory after a task.

A policy is a function from a :class:`TaskResult` to a source for the memory, to a whole memory that replaces the one
before, or to ``None``. The functions below make one each; :func:`replay_policy` makes the one that a recipe names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tgdd_plugin.beton.factors import check_factor
from tgdd_plugin.beton.format import read_stored, write_beton
from tgdd_plugin.core.device import Device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.coresets import herding
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.distilled import Distilled
from tgdd_plugin.distillation.distiller import distill
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.networks.features import features_of, herding_subset
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.settings import PolicyName, memory_settings, real_images
from tgdd_plugin.replay.sources import SourceLike
from tgdd_plugin.replay.tasks import (
    Task,
    check_enough_images,
    check_real_images,
    present_classes,
)
from tgdd_plugin.trajectory.store import Trajectory


@dataclass(frozen=True)
class TaskResult:
    """The end of a task's training: everything that a policy can make a memory of.

    Args:
        task: The task.
        network: The trained network, on its device.
        folder: The folder of the task, for files.
        trajectory: The trajectory folder of the training.
        seed: The seed of the learner.
    """

    task: Task
    network: nn.Module
    folder: Path
    trajectory: Path
    seed: int


Policy = Callable[[TaskResult], SourceLike | ReplayMemory | None]


def replay_policy(
    name: PolicyName,
    tasks: Sequence[Task],
    settings: DistillSettings,
    normalization: Normalization,
    device: Device | None = None,
    *,
    real_share: float = 0.5,
    loggers: Any = (),
) -> Policy:
    """Makes the policy that ``replay.policy`` names.

    Args:
        name: The name of the policy.
        tasks: All tasks of the learner.
        settings: How the new classes are distilled. The other policies use ``images_per_class`` alone.
        normalization: What the network's inputs are normalized with.
        device: ``'cpu'`` or ``'gpu'``, for distilling. Default: a GPU if there is one.
        real_share: The share of real images of the policy ``'hybrid'``. Default: ``0.5``.
        loggers: What logs are kept of each distillation, as in :func:`tgdd_plugin.distill`.

    Raises:
        InputError: If a class has fewer images than are to be kept, or ``settings`` names classes or a budget.
    """
    sized = memory_settings(settings)
    count = sized.images_per_class
    if name in ("distilled", "hybrid"):
        check_factor(sized.factor, *tasks[0].train.shape[1:])
    match name:
        case "random":
            check_enough_images(tasks, count)
            return random_exemplars(count)
        case "herding":
            check_enough_images(tasks, count)
            return herding_exemplars(count, normalization)
        case "reservoir":
            return reservoir(tasks, count * tasks[-1].train.num_classes, normalization)
        case "distilled":
            return distilled(settings, device=device, loggers=loggers)
        case "hybrid":
            real = real_images(count, real_share)
            apart = count if sized.start == "herding" else real  # the distilled ones then start from others
            check_real_images(tasks, apart * sized.factor**2 if real else 0)
            return hybrid(settings, real_share, normalization, device=device, loggers=loggers)


def random_exemplars(count: int) -> Policy:
    """Keeps ``count`` random images of each class of a task."""

    def select_exemplars(result: TaskResult) -> ImagePool:
        pool = result.task.train
        generator = torch.Generator().manual_seed(result.seed)
        return pool.subset(pool.draw(present_classes(pool), count, generator, "the memory").flatten())

    return select_exemplars


def herding_exemplars(count: int, normalization: Normalization) -> Policy:
    """Keeps ``count`` images of each class of a task by iCaRL's herding (S.-A. Rebuffi et al., CVPR 2017).

    The mean of their features, normalized to length 1, is near the mean of the class; the features are those of the
    network just trained.
    """

    def select_exemplars(result: TaskResult) -> ImagePool:
        pool = result.task.train
        check_enough_images([result.task], count)
        features = F.normalize(features_of(result.network, pool, normalization))
        return pool.subset(herding(features, torch.searchsorted(present_classes(pool), pool.labels), count))

    return select_exemplars


def reservoir(tasks: Sequence[Task], budget: int, normalization: Normalization) -> Policy:
    """Keeps a uniform sample of ``budget`` images of all tasks so far (J. S. Vitter, Algorithm R, 1985).

    The sample is drawn again from the first task on, with the same draws as before: nothing is kept between calls.

    Args:
        tasks: The tasks that are learned: the same objects.
        budget: How many images are kept.
        normalization: What the network's inputs are normalized with.

    Raises:
        InputError: From the policy, if the task that it is called for is not among ``tasks``.
    """

    def select_exemplars(result: TaskResult) -> ReplayMemory:
        number = next((i for i, task in enumerate(tasks) if task is result.task), None)
        if number is None:
            raise InputError(
                f"`tasks` of reservoir() must be the tasks that are learned, got {len(tasks)} without the one of "
                f"{', '.join(result.task.new[:12])}. Give it the list that is given to learn()."
            )
        kept = torch.tensor(sample_stream([len(task.train) for task in tasks[: number + 1]], budget, result.seed))
        images = [tasks[i].train.take(kept[kept[:, 0] == i, 1]) for i in range(number + 1)]
        labels = [tasks[i].train.labels[kept[kept[:, 0] == i, 1]] for i in range(number + 1)]
        # The budget of each class is all of it: how many images a class has is left to chance.
        memory = ReplayMemory(
            tasks[-1].train.classes, images_per_class=budget, mean=normalization.mean, std=normalization.std
        )
        memory.add(ImagePool(torch.cat(images), torch.cat(labels), memory.classes))
        return memory

    return select_exemplars


def distilled(settings: DistillSettings, **options: Any) -> Policy:
    """Keeps the new classes of a task, distilled from the trajectory of its training.

    Args:
        settings: How they are distilled; with the sources ``'exemplars'`` and ``'recorded'`` from the trajectory alone.
        options: Further arguments of :func:`tgdd_plugin.distill`.

    Raises:
        InputError: If the settings name classes or a budget.
    """
    if settings.classes is not None:
        raise InputError(
            f"`distill.classes` must be left out in replay, got {settings.classes}. Each task has its own classes."
        )

    sized = memory_settings(settings)

    def select_exemplars(result: TaskResult) -> SourceLike:
        path = result.folder / "distilled.beton"
        real = result.task.train if sized.reads_data else None
        own = replace(sized, classes=result.task.new)
        # A file of another job is what a training left there whose scores were deleted since.
        return distill(result.trajectory, real, path, own, network=result.network, overwrite=True, **options)

    return select_exemplars


def hybrid(settings: DistillSettings, real_share: float, normalization: Normalization, **options: Any) -> Policy:
    """Keeps real and distilled images of each new class, ``images_per_class`` in all.

    Memories of both kinds won over those of either in the comparison of arXiv 2410.15372. The real images are those
    that herding selects by the features of the network just trained, after those that the distilled ones start from
    where that is herding, too (of a class of more than a thousand images, either looks at a thousand of its own); with
    a factor, each stored one holds f² of them, shrunk. Where the source is the trajectory alone they are selected among
    its exemplars.

    Args:
        settings: How the distilled images are distilled.
        real_share: The share of real images, from 0 to 1. Of two or more images of a class, at least one is of either
            kind; a single one is distilled.
        normalization: What the network's inputs are normalized with.
        options: Further arguments of :func:`tgdd_plugin.distill`.

    Raises:
        InputError: If the settings name classes or a budget, or the trajectory has no exemplars to choose from.
    """
    sized = memory_settings(settings)
    count = sized.images_per_class
    real = real_images(count, real_share)
    started = count - real if sized.start == "herding" else 0  # or each distilled image would have its like beside it
    distil = distilled(replace(sized, images_per_class=count - real), **options)

    def select_exemplars(result: TaskResult) -> SourceLike:
        file = distil(result)
        assert isinstance(file, Distilled)
        if not real:
            return file
        pool = result.task.train
        if not sized.reads_data:
            pool = _exemplars(result, real * sized.factor**2)
        ids = [pool.classes.index(name) for name in result.task.new]
        shape = (len(ids), real, *pool.shape)
        generator = torch.Generator().manual_seed(result.seed)
        parts = sized.factor**2
        typical = herding_subset(
            pool, ids, (started + real) * parts, generator, lambda of: features_of(result.network, of, normalization)
        )
        chosen = typical.subset(torch.cat([(typical.labels == label).nonzero()[-real * parts :, 0] for label in ids]))
        kept = SyntheticImages(start_pixels("mix", shape, sized.factor, chosen, generator, ids), sized.factor)
        images, labels = kept.to_uint8(packed=sized.packed)
        stored, stored_labels, card = read_stored(file.path)
        assert card is not None  # distill() wrote it
        both = torch.cat([stored, images]), torch.cat([stored_labels, labels])
        card = replace(card, images_per_class=count, method={**card.method, "real_images": real}, accuracy=[])
        return write_beton(result.folder / "hybrid.beton", *both, card)

    return select_exemplars


def _exemplars(result: TaskResult, needed: int) -> ImagePool:
    """The real images that the trajectory of a task keeps.

    Raises:
        InputError: If there are fewer than ``needed`` of a class.
    """
    pool = Trajectory.open(result.trajectory).exemplars()
    have = 0 if pool is None else min(int(pool.counts[pool.classes.index(name)]) for name in result.task.new)
    if pool is None or have < needed:
        raise InputError(
            f"`record.exemplars` must be at least {needed} for the policy 'hybrid' without the data, whose real images "
            f"come from there, got {have}. Raise it, lower replay.real_share, or leave distill.source out."
        )
    return pool


def sample_stream(sizes: Sequence[int], budget: int, seed: int) -> list[tuple[int, int]]:
    """Draws the content of a reservoir at the end of a stream of tasks.

    Args:
        sizes: The number of images of each task; the images of a task come in random order.
        budget: The size of the reservoir.
        seed: The seed of order and slots.

    Returns:
        The task of each image, and its position in the task.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[int, int]] = []
    came = 0
    for task, size in enumerate(sizes):
        order = torch.randperm(size, generator=generator).tolist()
        shares = torch.rand(size, generator=generator, dtype=torch.float64).tolist()
        for position, share in zip(order, shares, strict=True):
            came += 1
            slot = came - 1 if came <= budget else int(share * came)
            if slot < budget:
                kept[slot : slot + 1] = [(task, position)]
    return kept
