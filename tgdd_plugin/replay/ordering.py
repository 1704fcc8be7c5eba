"""The order of the images in a replay memory, and how images are drawn: functions of labels and features alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tgdd_plugin.beton.multi_formation import unpack
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.coresets import herding
from tgdd_plugin.data.image_pool import ImagePool


def most_representative(
    pool: ImagePool, count: int, features: Callable[[torch.Tensor], torch.Tensor] | None, factor: int
) -> torch.Tensor:
    """Chooses up to ``count`` images of each class, in the order of herding.

    Args:
        pool: The images; stored ones if ``factor`` is above 1.
        count: n, how many of each class. All images of a class with fewer are chosen.
        features: From uint8 images ``(N, C, H, W)`` to ``(N, D)``; ``None`` for their pixels.
        factor: f of multi-formation. The features of a stored image are the mean over those it decodes to.

    Returns:
        Positions in the pool, int64 on the CPU, class after class.

    Raises:
        InputError: If the features are not ``(N, D)``, floating point and finite.
    """
    images = unpack(pool.images, factor) if factor > 1 else pool.images
    rows = images.flatten(1) if features is None else features(images)
    if rows.ndim != 2 or len(rows) != len(images):
        raise InputError(
            f"`features` must return a row for each of the {len(images)} images, ({len(images)}, D), got shape "
            f"{tuple(rows.shape)}. Flatten what belongs to an image."
        )
    rows = rows.unflatten(0, (len(pool), factor**2))
    chosen = []
    for label in range(pool.num_classes):
        own = (pool.labels == label).nonzero().flatten()
        if len(own):
            parts = rows[own.to(rows.device)]
            parts = parts.float() if features is None else parts  # of one class at a time, for the memory
            mean = parts.mean(1) if factor > 1 else parts[:, 0]
            chosen.append(own[herding(mean, torch.zeros(len(own)), min(count, len(own)))])
    return torch.cat(chosen)


def arrange(labels: torch.Tensor, sources: torch.Tensor, share: int, remainder: int) -> torch.Tensor:
    """Puts a memory in order: classes one after another, and within a class the sets it came from in turns.

    A prefix of a class thus consists of the best images of each of its sets, equally many of each.

    Args:
        labels: Class ids ``(N,)``.
        sources: Which set each image came from, ``(N,)``; images of one class and set are in the order of herding.
        share: How many images of each class are kept.
        remainder: How many of the classes, in the order in which they came, keep one more. Later classes take it from
            the last of them, so that no class has to gain an image that it had dropped.

    Returns:
        Positions of the images that are kept, in their new order.
    """
    if not len(labels):
        return labels
    rank = _rank(labels * (int(sources.max()) + 1) + sources)
    order = torch.arange(len(labels))
    for key in (sources, rank, labels):  # the last one decides first
        order = order[key[order].argsort(stable=True)]
    present, positions = labels.unique(return_inverse=True)
    came = torch.full_like(present, int(sources.max())).scatter_reduce(0, positions, sources, "amin")
    turn = came.argsort(stable=True).argsort()  # classes by the set that they first came with, then by id
    return order[_rank(labels[order]) < share + (turn[positions] < remainder)[order]]


def _rank(groups: torch.Tensor) -> torch.Tensor:
    """Counts, for each element, how many of its own group come before it, ``(N,)``."""
    order = groups.argsort(stable=True)
    found = groups[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - torch.searchsorted(found, found)
    return rank


def draw(labels: torch.Tensor, count: int, generator: torch.Generator, balanced: bool = True) -> torch.Tensor:
    """Draws from labelled images; no image is drawn again before all others of its kind have been drawn.

    Args:
        labels: Class ids ``(N,)`` in rising order, where the generator is.
        count: How many images to draw.
        generator: The source of randomness, on any device.
        balanced: Whether classes take turns, in random order, so that their numbers differ by one at most. Otherwise
            all images count as one kind. Default: ``True``.

    Returns:
        Positions ``(count,)``, where the generator is.
    """
    device = generator.device
    keys = torch.rand(len(labels), generator=generator, device=device, dtype=torch.float64)
    turn = torch.arange(count, device=device)
    if not balanced:
        return keys.argsort()[turn % len(labels)]
    shuffled = (keys + labels).argsort()  # classes one after another, each in random order
    sizes = labels.unique_consecutive(return_counts=True)[1]
    starts = sizes.cumsum(0) - sizes
    drawn = torch.randperm(len(sizes), generator=generator, device=device)[turn % len(sizes)]
    return shuffled[starts[drawn] + turn // len(sizes) % sizes[drawn]]
