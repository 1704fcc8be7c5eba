"""Images of a compact set and real ones in one, for short trainings on both."""

from __future__ import annotations

from numbers import Real

import torch

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.allocation import allocate
from tgdd_plugin.data.image_pool import ImagePool


def mixed_images(
    images: torch.Tensor, labels: torch.Tensor, real: ImagePool, passes: int, share: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws the images of one epoch of so many passes, a share of them of a compact set and the others real.

    No image of either comes again before all have come as often. Large ones lie in a temporary file, as a pool does.

    Args:
        images: The set's, decoded, uint8 ``(N, C, H, W)``.
        labels: Their class ids ``(N,)``.
        real: The real images, of the same shape and classes.
        passes: The number of images to draw.
        share: The share of the set's, from 0 to 1.
        seed: The seed of the draw.

    Returns:
        uint8 images ``(passes, C, H, W)`` on the CPU and their labels; first the set's, then the real ones.

    Raises:
        InputError: If ``share`` is not a number in that range.
    """
    if not isinstance(share, Real) or not 0 <= share <= 1:
        raise InputError(
            f"`share` must be a number from 0 to 1, got {share!r}. Give the share of the passes on the set."
        )
    generator = torch.Generator().manual_seed(seed)
    own = _own(passes, share)
    mixed, ids = allocate((passes, *images.shape[1:])), torch.empty(passes, dtype=torch.int64)
    for pool, first, last in ((ImagePool(images.cpu(), labels), 0, own), (real, own, passes)):
        if last > first:
            begin = first
            for index in _drawn(len(pool), last - first, generator).split(pool.block):
                end = begin + len(index)
                mixed[begin:end], ids[begin:end] = pool.take(index).cpu(), pool.labels[index].cpu()
                begin = end
    return mixed, ids


def number_of_different(images: int, real: int, passes: int, share: float) -> int:
    """Returns how many different images are among those of :func:`mixed_images`, of a set's and of real ones."""
    own = _own(passes, share)
    return min(own, images) + min(passes - own, real)


def _own(passes: int, share: float) -> int:
    """The passes on the set."""
    return round(share * passes)


def _drawn(count: int, number: int, generator: torch.Generator) -> torch.Tensor:
    """``number`` positions out of ``count``, none again before all have come as often."""
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-number // count))])[:number]
