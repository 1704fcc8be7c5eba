"""Whether real images fit a ``.beton``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.beton.card import Card
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool


def fitting_pool(images: Any, name: str, file: str | Path, card: Card) -> ImagePool:
    """Returns the images as a pool, if they are of the file's shape and classes.

    Args:
        images: An :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
        name: What the images are for, to be named in an error.
        file, card: The file that they must fit, and its card.

    Raises:
        InputError: If they do not.
    """
    pool = images if isinstance(images, ImagePool) else ImagePool.from_dataset(images)
    pool = _by_names(pool, card.classes)
    if list(pool.shape) != card.shape or pool.num_classes > len(card.classes):
        raise InputError(
            f"The {name} images must be of at most {len(card.classes)} classes and shape {card.shape}, as in '{file}', "
            f"got {pool.num_classes} classes of {list(pool.shape)}. Give the data set that was distilled."
        )
    pool.adopt_class_names(card.classes, len(card.classes), f"'{file}'")
    return pool


def _by_names(pool: ImagePool, classes: list[str]) -> ImagePool:
    """Returns the images with the classes of a set, which may lack empty ones and have another order, by their names.

    As they are if the names do not say which class is which.
    """
    present = pool.counts.nonzero().flatten()
    if pool.classes == classes or not set(pool.names_of(present)) <= set(classes) <= set(pool.classes):
        return pool
    ids = torch.zeros(pool.num_classes, dtype=torch.int64)
    ids[present] = torch.tensor([classes.index(name) for name in pool.names_of(present)])
    return ImagePool(pool.images, ids[pool.labels], classes)
