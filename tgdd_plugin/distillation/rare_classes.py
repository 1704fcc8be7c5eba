"""Classes with few real images, or none: what is refused before any long work, and what is told."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from tgdd_plugin.core.class_names import named_classes
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.ranks import rank
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.settings import SizedSettings


def warn_of_rare_classes(
    settings: SizedSettings, pool: ImagePool | None, start_pool: ImagePool | None, ids: Sequence[int]
) -> None:
    """Warns, once and on rank 0, of classes that have fewer real images than is asked for.

    A class with fewer images than others must not rule the number for all: a step then repeats its images, and what it
    lacks at the start is noise. Where no class has enough, the draw itself says which number is right.

    Args:
        settings: The resolved settings.
        pool: The real images that every step draws from; ``None`` for recorded means.
        start_pool: The real images that the pixels may start from; ``None`` if there are none.
        ids: The ids of the classes to distill.
    """
    told = []
    if pool is not None:
        needed = settings.real_per_class
        if int(pool.counts[list(ids)].max()) <= needed:  # few of each class: a little fewer is nothing to tell
            needed = -(-needed // 2)
        if rare := _rare(pool, ids, needed):
            told.append(f"{rare} than real_per_class={settings.real_per_class}: each step repeats them")
    if start_pool is not None and (needed := settings.start_images):
        if rare := _rare(start_pool, ids, needed):
            told.append(f"{rare} than the {needed} that start '{settings.start}' takes: the others start from noise")
    if told and rank() == 0:
        warnings.warn("; ".join(told), stacklevel=3)


def check_present(pool: ImagePool, ids: Sequence[int]) -> None:
    """Checks that every class to distill has a real image.

    Args:
        pool: The real images that every step draws from.
        ids: The ids of the classes.

    Raises:
        InputError: If one has none.
    """
    chosen = torch.tensor(ids)
    empty = pool.names_of(chosen[pool.counts[chosen] == 0])
    if not empty:
        return
    present = pool.names_of(chosen[pool.counts[chosen] > 0])
    rest = "those that have some"
    if 0 < len(present) <= 20:
        rest = f"those that have some, {present}"
    raise InputError(
        f"The {named_classes(empty)} must have real images to be distilled from, got none in {len(pool)} images. Give "
        f"images of each class, or distill {rest} (`classes`, in a recipe distill.classes)."
    )


def _rare(pool: ImagePool, ids: Sequence[int], needed: int) -> str:
    """Says which classes have fewer images than ``needed``; nothing if none has, or all have."""
    chosen = torch.tensor(ids)
    counts = pool.counts[chosen]
    rare = counts < needed
    if not bool(rare.any()) or bool(rare.all()):
        return ""
    few, most = int(counts[rare].min()), int(counts[rare].max())
    number = str(few) if few == most else f"{few} to {most}"
    return f"{named_classes(pool.names_of(chosen[rare]))}: {number} real images, fewer"
