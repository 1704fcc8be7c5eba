"""The synthetic images: their pixels, their start, multi-formation, and their form as uint8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tgdd_plugin.beton.factors import check_factor
from tgdd_plugin.beton.multi_formation import decode
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.settings import Start


class SyntheticImages(nn.Module):
    """n stored images for each of K classes, whose pixels are the parameter that distillation trains.

    With ``factor`` f, n stored images decode to n·f² images of full size, see :func:`decode`.

    Args:
        pixels: Stored images in class order, in [0, 1], of shape ``(K, n, C, H, W)``.
        factor: f. Default: ``1``.

    Raises:
        InputError: If the side of the images is not a multiple of ``factor``.
    """

    def __init__(self, pixels: torch.Tensor, factor: int = 1) -> None:
        super().__init__()
        check_factor(factor, *pixels.shape[-2:])
        self.pixels = nn.Parameter(pixels)
        self.factor = factor

    @property
    def decoded_per_class(self) -> int:
        """The number of decoded images of each class, n·f²."""
        return self.pixels.shape[1] * self.factor**2

    def decode(self, classes: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """Decodes the images of some classes to full size, differentiably, by :func:`decode`.

        Args:
            classes: The positions of the classes, ``(k,)``.
            chosen: Which decoded images of each class, ``(k, s)``. Default: ``None``, all.
        """
        return decode(self.pixels[classes], self.factor, chosen)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamps the pixels to [0, 1], in place."""
        self.pixels.clamp_(0, 1)

    @torch.no_grad()
    def keep_finite_(self) -> torch.Tensor | None:
        """Sets the gradient to zero, in place, if any of it is not finite, without waiting for the device.

        Returns:
            Whether all of it was finite, a bool on the device; ``None`` without a gradient.
        """
        if (gradient := self.pixels.grad) is None:
            return None
        finite = gradient.isfinite().all()
        gradient.copy_(torch.where(finite, gradient, 0.0))
        return finite

    @torch.no_grad()
    def gradient_norm(self) -> torch.Tensor | None:
        """Returns the L2 norm of the pixels' gradient, on the device; ``None`` without a gradient."""
        return None if self.pixels.grad is None else torch.linalg.vector_norm(self.pixels.grad)

    @torch.no_grad()
    def jumping(self, learning_rate: float) -> torch.Tensor:
        """Returns the share of the pixels with a gradient that an SGD step would move by more than 1, on the device."""
        if (gradient := self.pixels.grad) is None:
            return torch.zeros(())
        far = (gradient.double().abs() * learning_rate > 1).sum()
        return far / gradient.count_nonzero().clamp(min=1)

    @torch.no_grad()
    def to_uint8(self, *, packed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what ships: uint8 images on the CPU, in class order, and their labels.

        Args:
            packed: Whether to return the images as stored, ``(K·n, C, H, W)``. Default: ``False``, decoded,
                ``(K·n·f², C, H, W)``.
        """
        number, stored = self.pixels.shape[:2]
        count = stored if packed else self.decoded_per_class
        images = torch.empty((number, count, *self.pixels.shape[2:]), dtype=torch.uint8)
        for label, own in enumerate(images):  # class by class, as floats take many times the memory
            own.copy_(as_bytes(self.pixels[label : label + 1] if packed else self.decode(torch.tensor([label]))))
        return images.flatten(0, 1), torch.arange(number).repeat_interleave(count)


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Returns images ``(K, n, C, H, W)`` as they ship, uint8 ``(K·n, C, H, W)`` on the CPU."""
    return images.clamp(0, 1).mul(255).round().to(torch.uint8).flatten(0, 1).cpu()


def start_pixels(
    start: Start,
    shape: tuple[int, int, int, int, int],
    factor: int,
    pool: ImagePool | None,
    generator: torch.Generator,
    ids: Sequence[int] | None = None,
    budget: int | None = None,
) -> torch.Tensor:
    """Returns the pixels that distillation starts from.

    Args:
        start: ``'real'``: n real images of each class. ``'mix'``: each of the n·f² sub-images is a real image of its
            own, shrunk (with factor 1 the same as ``'real'``). ``'herding'``: as ``'mix'``, from a pool that has no
            more than these images (see :func:`tgdd_plugin.networks.features.herding_subset`). ``'noise'``: uniform in
            [0, 1], reading no real image.
        shape: The shape of the pixels, (K, n, C, H, W).
        factor: f, as in :class:`SyntheticImages`.
        pool: The real images; not needed for ``'noise'``.
        generator: The source of randomness, on the CPU.
        ids: The classes' ids in the pool, ``(K,)``. Default: ``None``, 0, 1, 2, ...
        budget: The budget that n comes from, for an error message. Default: ``None``, it comes from none.

    Raises:
        InputError: If no class has enough real images.
    """
    classes, count, channels, height, width = shape
    check_factor(factor, height, width)
    if start == "noise":
        return torch.rand(shape, generator=generator)
    if pool is None:
        raise InputError(
            f"`start` must be 'noise' where there are no real images, got '{start}'. Give the real images, or choose "
            f"start='noise'."
        )
    parts = 1 if start == "real" else factor**2
    pool_ids = torch.arange(classes) if ids is None else torch.tensor(ids)
    check_start_images(start, count, factor, pool.counts[pool_ids], pool.names_of(pool_ids), budget)
    have = pool.counts[pool_ids].clamp(max=count * parts)
    rows = [
        F.pad(pool.draw(label[None], int(n), generator, "to start from")[0], (0, count * parts - int(n)))
        for label, n in zip(pool_ids, have, strict=True)
    ]
    pixels = torch.empty(shape)
    for own, row, number in zip(pixels, rows, have.tolist(), strict=True):  # class by class, to save memory
        images = pool.take(row).float() / 255
        if parts > 1:
            size = height // factor, width // factor
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        if number < len(images):  # copies of one image would have one gradient, and stay copies
            images[number:] = torch.rand(images[number:].shape, generator=generator).to(images)
        if parts > 1:
            grid = images.view(count, factor, factor, channels, *size)
            images = grid.permute(0, 3, 1, 4, 2, 5).reshape(own.shape).clamp(0, 1)
        own.copy_(images)
    return pixels


def check_start_images(
    start: Start, count: int, factor: int, have: torch.Tensor, names: Sequence[str], budget: int | None
) -> None:
    """Checks that some class has as many real images as a start takes of each.

    Args:
        start, factor: As in :func:`start_pixels`.
        count: The number n of stored images of each class.
        have: The number of real images of each class, ``(K,)``.
        names: The classes' names.
        budget: The budget that n comes from, if it does.

    Raises:
        InputError: If none has.
    """
    parts = 1 if start == "real" else factor**2
    most = int(have.max())
    if start == "noise" or most >= count * parts:
        return
    many = " · factor²" if parts > 1 else ""
    lower = f"Lower images_per_class to {most // parts}" if most >= parts else "Add real images"
    wanted, got = f"`images_per_class` must be at most {most // parts}", f"{count}"
    if budget:
        lower = f"Choose a smaller budget or images_per_class={most // parts}" if most >= parts else "Add real images"
        wanted = f"`budget` must make images_per_class at most {most // parts}"
        got = f"{budget}, which makes it {count}"
    raise InputError(
        f"{wanted} for class '{names[int(have.argmax())]}', which has {most} real images to start from, got {got}: "
        f"start '{start}' takes images_per_class{many} = {count * parts} of each. {lower}"
        + (", or choose start 'real' or factor 1" if parts > 1 else "")
        + ", or choose start 'noise'."
    )
