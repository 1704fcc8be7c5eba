"""Whether real images fit a ``.beton``, or other images."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch

from tgdd_plugin.beton.card import Card
from tgdd_plugin.core.class_names import number_names
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool


def fitting_pool(images: Any, name: str, file: str | os.PathLike[str], card: Card) -> ImagePool:
    """Returns the images as a pool, if they are of the file's shape and classes.

    Args:
        images: An :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
        name: What the images are for, to be named in an error.
        file, card: The file that they must fit, and its card.

    Raises:
        InputError: If they do not.
    """
    pool = ImagePool.from_dataset(images)
    remedy = "Give the data set that was distilled."
    return fitting_images(pool, name, card.classes, card.shape, f"'{file}'", remedy)


def fitting_images(
    pool: ImagePool, name: str, classes: Sequence[str], shape: Sequence[int], owner: str, remedy: str
) -> ImagePool:
    """Returns the images with the classes, by their names or else by position, if they are of them and of the shape.

    Args:
        pool: The images.
        name: What they are for, to be named in an error.
        classes, shape: The names of the classes, and the shape (C, H, W), that they must fit.
        owner: What has these, for an error, and ``remedy`` what is to be done.

    Raises:
        InputError: If they do not fit.
    """
    pool = copy.copy(by_names(pool, classes))  # it may get names of classes, which are no business of the user's pool
    if list(pool.shape) != list(shape) or pool.num_classes > len(classes):
        raise InputError(
            f"The {name} images must be of at most {len(classes)} classes and shape {list(shape)}, as in {owner}, got "
            f"{pool.num_classes} classes of {list(pool.shape)}. {remedy}"
        )
    pool.adopt_class_names(classes, len(classes), owner, name)
    return pool


def check_before_distilling(
    named: Sequence[str] | None, known: Sequence[str], owner: str, real: ImagePool, test: ImagePool
) -> None:
    """Checks what :func:`fitting_pool` would refuse of a set that is still to be distilled; no pool is changed.

    Args:
        named: The names of the classes to distill, if not all of those known.
        known: The names of the classes that the trajectory has, or will have, and ``owner`` what they are from.
        real, test: The real images for training and testing.

    Raises:
        InputError: If the images do not fit the set.
    """
    remedy = "Give images of the same size and classes."
    if named is not None and set(named) <= set(known):
        known, owner = named, "the set with distill.classes"
        remedy = "Leave distill.classes out, or use tgdd record and tgdd distill, which score nothing."
    for name, pool in (("training", real), ("test", test)):
        fitting_images(copy.copy(pool), name, known, real.shape, owner, remedy)


def by_names(pool: ImagePool, classes: Sequence[str]) -> ImagePool:
    """Returns the images with some classes, of which they may lack some and have another order, by their names.

    As they are if the names do not say which class is which.
    """
    present = pool.counts.nonzero().flatten()
    # Numbers stand for names only where all of the other names are among them: without names, label 1 is the second of
    # the folders "1", "2" and "3", and not the one that is called "1".
    known = set(pool.classes) if pool.classes == number_names(pool.num_classes) else set(classes)
    if pool.classes == list(classes) or not set(pool.names_of(present)) <= set(classes) <= known:
        return pool
    ids = torch.zeros(pool.num_classes, dtype=torch.int64)
    ids[present] = torch.tensor([list(classes).index(name) for name in pool.names_of(present)])
    return ImagePool(pool.images, ids[pool.labels], classes)
