"""What a distillation starts from, checked against each other: the trajectory, real images and resolved settings."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from tgdd_plugin.beton.factors import check_factor
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.compatibility import agreed_normalization, check_pool, input_shape
from tgdd_plugin.distillation.rare_classes import check_present
from tgdd_plugin.distillation.sampling import draw_real
from tgdd_plugin.distillation.settings import DistillSettings, SizedSettings
from tgdd_plugin.distillation.sources import source_without_images
from tgdd_plugin.distillation.synthetic_images import check_start_images
from tgdd_plugin.networks.factory import is_convnet
from tgdd_plugin.trajectory.shortcomings import check_left
from tgdd_plugin.trajectory.store import Trajectory


@dataclass(frozen=True)
class Inputs:
    """What a distillation starts from.

    Args:
        trajectory: The recorded runs.
        settings: The settings, with the defaults filled in that depend on the runs and the images.
        pool: The real images that every step draws from, given or kept with the runs; ``None`` for the source
            ``'recorded'``, which needs none.
        known_by: The real images that name the job: those given, or all that the runs kept; ``None`` if there are none.
        start_pool: Those that the pixels may start from, of the kept ones each once where that is enough; ``None`` if
            there are none.
        shape: (C, H, W) of the images.
        normalization: What the networks' inputs are normalized with.
        class_ids: Ids of the classes to distill, in order.
        class_names: Their names.
    """

    trajectory: Trajectory
    settings: SizedSettings
    pool: ImagePool | None
    known_by: ImagePool | None
    start_pool: ImagePool | None
    shape: tuple[int, int, int]
    normalization: Normalization
    class_ids: list[int]
    class_names: list[str]

    @property
    def real_per_class(self) -> int:
        """The number of real images of each class and step."""
        return self.settings.real_per_class if self.pool is not None else 0

    @property
    def synthetic_per_class(self) -> int:
        """The number of decoded synthetic images of each class and step."""
        return min(self.settings.images_per_class * self.settings.factor**2, self.settings.max_decoded)

    @cached_property
    def fingerprint(self) -> str | None:
        """The fingerprint of the real images."""
        return None if self.known_by is None else self.known_by.fingerprint()


def resolve_inputs(
    trajectory: Trajectory,
    real: Any | None,
    settings: DistillSettings,
    given: Normalization | None,
    *,
    progress_bar: bool = False,
) -> Inputs:
    """Reads the real images and checks them, the settings and the trajectory against each other.

    Args:
        trajectory: The recorded runs.
        real: The real images: an :class:`ImagePool`, any data set :meth:`ImagePool.from_dataset` takes, or ``None``.
        settings: The settings as the user gave them.
        given: The normalization as the user gave it, or ``None`` for the recorded one.
        progress_bar: Whether to show a progress bar while images are read. Default: ``False``.

    Raises:
        InputError: If they contradict each other, or something is missing.
    """
    for each in trajectory.runs.values():
        check_left(each, [stage for stage in each.stages if not stage.finite])
    run = trajectory.run
    if run.input is not None:
        channels, *sides = input_shape(run)
        if channels not in (1, 3):
            raise InputError(
                f"`trajectory` must be of images of 1 or 3 channels, which a .beton holds, got run '{run.name}' of "
                f"{channels} channels. Record a training on such images."
            )
        check_factor(settings.factor or 1, *sides)  # before any image is read; the default fits
    # A copy, as it may get names of classes, which are no business of the user's pool.
    pool = None if real is None else copy.copy(ImagePool.from_dataset(real, progress=progress_bar))
    settings = resolve_settings(settings, trajectory, pool)
    if settings.source == "exemplars":
        pool = trajectory.exemplars()
    known_by = trajectory.exemplars() if pool is None else pool
    start_pool = known_by
    if known_by is not None:
        for recorded in trajectory.runs.values():
            check_pool(known_by, recorded)
        if real is None or settings.source == "exemplars":
            start_pool = _without_copies(known_by, settings.start_images)
    shape = input_shape(run) if pool is None else pool.shape
    statistics = None if known_by is None else known_by.statistics()
    normalization = agreed_normalization(given, run, shape[0], statistics)
    names = run.class_names
    class_ids = _class_ids(settings.classes, names)
    sampled = None if settings.source == "recorded" else pool
    if sampled is not None:
        check_present(sampled, class_ids)
        settings = replace(settings, real_per_class=_at_most(settings, sampled, class_ids))
    return Inputs(
        trajectory=trajectory,
        settings=settings,
        pool=sampled,
        known_by=known_by,
        start_pool=start_pool,
        shape=shape,
        normalization=normalization,
        class_ids=class_ids,
        class_names=[names[number] for number in class_ids],
    )


def _at_most(settings: SizedSettings, pool: ImagePool, class_ids: Sequence[int]) -> int:
    """How many real images of a class a step takes: at most as many as the largest class has."""
    return min(settings.real_per_class, int(pool.counts[list(class_ids)].max()))


def _without_copies(pool: ImagePool, needed: int) -> ImagePool:
    """Returns the images without those that several runs kept: of one gradient, pixels that start alike stay alike.

    Where a class has too few for ``needed`` different ones to start from, it keeps all of its images.
    """
    first: dict[tuple[int, bytes], int] = {}
    for position, (image, label) in enumerate(zip(pool.images, pool.labels.tolist(), strict=True)):
        first.setdefault((label, hashlib.sha256(image.contiguous().numpy()).digest()), position)
    kept = torch.zeros(len(pool), dtype=torch.bool)
    kept[list(first.values())] = True
    different = torch.bincount(pool.labels[kept], minlength=len(pool.classes))
    kept |= (different < needed)[pool.labels]
    return pool if kept.all() else pool.subset(kept.nonzero().flatten())


def check_before_recording(
    settings: DistillSettings, pool: ImagePool, given: Normalization | None, *, runs: int, exemplars: int
) -> None:
    """Checks what a distillation of a trajectory that is still to be recorded on a pool would refuse afterwards.

    Args:
        settings: The settings as the user gave them.
        pool: The images that the networks will be trained on.
        given: The normalization as the user gave it.
        runs: The number of runs of an architecture.
        exemplars: The most real images of a class that a run keeps.

    Raises:
        InputError: If the images, the settings and the normalization do not fit each other.
    """
    if given is not None:
        given.of_channels(pool.shape[0])
    class_ids = _class_ids(settings.classes, pool.classes)
    check_present(pool, class_ids)  # without images a class would have no means either
    sized = settings.sized(len(class_ids), pool.shape[1:])
    check_factor(sized.factor, *pool.shape[1:])
    ids = torch.tensor(class_ids)
    have = pool.counts[ids]
    if settings.reads_data:
        draw_real(pool, ids, _at_most(sized, pool, class_ids), torch.Generator())
    else:
        have = have.clamp(max=exemplars) * runs
    names, budget = pool.names_of(ids), sized.sized_by(len(ids))
    check_start_images(sized.start, sized.images_per_class, sized.factor, have, names, budget)


def resolve_settings(settings: DistillSettings, trajectory: Trajectory, pool: ImagePool | None) -> SizedSettings:
    """Returns the settings with their defaults filled in for the runs and the real images, if there are any.

    Raises:
        InputError: If the source needs real images and there are none, or the runs do not agree on an augmentation.
    """
    run = trajectory.run
    if settings.source == "sampled" and pool is None:
        raise InputError(
            "`source` must be 'exemplars' or 'recorded' where there are no real images, got 'sampled', which reads "
            "some at every step. Give the real images, or leave the source out."
        )
    if settings.source == "exemplars" and not any(recorded.exemplars for recorded in trajectory.runs.values()):
        raise InputError(
            "`source` must be 'sampled' or 'recorded' where the trajectory keeps no real images, got 'exemplars'. Give "
            "the real images, choose source 'recorded', or record again with exemplars=100."
        )
    sides = (input_shape(run) if pool is None else pool.shape)[1:]
    classes = len(settings.classes or run.classes or range(run.num_classes))
    resolved = settings.resolved(
        sides,
        classes=classes,
        source="sampled" if pool is not None else source_without_images(trajectory, settings.classes),
        trained_with=run.augmentation,
        convnets=all(is_convnet(recorded.network) for recorded in trajectory.runs.values()),
    )
    seen = {str(recorded.augmentation) for recorded in trajectory.runs.values()}
    if resolved.source == "recorded" and settings.augmentation is None and len(seen) > 1:
        raise InputError(
            f"`distill.augmentation` must be given where runs were trained under different augmentations, which their "
            f"class means contain, got runs under {', '.join(sorted(seen))}. Choose the augmentation of the synthetic "
            f"images, or keep runs that are not alike in folders of their own."
        )
    return resolved


def _class_ids(chosen: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    if chosen is None:
        return list(range(len(names)))
    for name in chosen:
        if name not in names:
            hint = ""
            if name.isdecimal() and any(one[:1].isdecimal() and _as_number(one) != one for one in names):
                hint = " Write a name like 007 in quotes, since YAML reads it as the number 7."
            raise InputError(
                f"`distill.classes` must be names of the trajectory's classes, got '{name}'. Its classes are "
                f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}.{hint}"
            )
        if (owners := list(names).count(name)) > 1:
            raise InputError(
                f"`distill.classes` must each be the name of one class, got '{name}', the name of {owners}. Leave it "
                f"out, or record with different names (`classes` of TGDDCallback)."
            )
    return [list(names).index(name) for name in chosen]


def _as_number(name: str) -> str:
    """A class name as it is once it was read as a whole number, if it can be."""
    return str(int(name)) if name.isdecimal() else ""
