"""Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021), with one draw for each group of images.

A draw is a dictionary of tensors whose first dimension is the group, so that it can be split and moved like a batch.
In distillation a group is a class, and its real and synthetic images share a draw; in training a group is one image.
Images are normalized first: pixels that are shifted in or cut out then have the mean colour, 0. Strengths and
distributions are those of DSA; the order is always color, scale and rotate (in one resampling), crop, flip, cutout.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tgdd_plugin.augmentation.strategy import parse_augmentation

Draw = dict[str, torch.Tensor]


BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_PAD, CUTOUT_SIDE, SCALE, ROTATE_DEGREES = 0.125, 0.5, 1.2, 15.0


def draw_augmentation(strategy: str, groups: int, size: tuple[int, int], generator: torch.Generator) -> Draw:
    """Draws the parameters of every operation of ``strategy``, which are applied one after another.

    Args:
        strategy: Operations joined by ``_``, or ``'none'``.
        groups: The number of independent draws G.
        size: The height and width (H, W) of the images.
        generator: The source of randomness, on the CPU, so that a draw is the same on every device.

    Returns:
        The parameters by name, as tensors on the CPU with first dimension G.
    """
    height, width = size
    operations = parse_augmentation(strategy)
    draw: Draw = {}
    uniform = functools.partial(_uniform, groups, generator)
    integers = functools.partial(_integers, groups, generator)
    if "color" in operations:
        draw["brightness"] = uniform(-BRIGHTNESS / 2, BRIGHTNESS / 2)
        draw["saturation"] = uniform(0.0, SATURATION)
        draw["contrast"] = uniform(1 - CONTRAST, 1 + CONTRAST)
    if "scale" in operations or "rotate" in operations:
        scale = uniform(1 / SCALE, SCALE, 2) if "scale" in operations else torch.ones(groups, 2)
        angle = uniform(-ROTATE_DEGREES, ROTATE_DEGREES) * (math.pi / 180) * ("rotate" in operations)
        draw["affine"] = _affine(scale, angle)
    if "crop" in operations or "flip" in operations:
        pad = [int(side * CROP_PAD + 0.5) * ("crop" in operations) for side in size]
        mirrored = integers(0, 1).bool() & torch.tensor("flip" in operations)
        draw["rows"] = _shifted(height, integers(-pad[0], pad[0]))
        columns = _shifted(width, integers(-pad[1], pad[1]))
        draw["columns"] = torch.where(mirrored[:, None], columns.flip(1), columns)
    if "cutout" in operations:
        # A square of half the side whose centre is anywhere: near a border a smaller part of it lies inside.
        side = [int(s * CUTOUT_SIDE + 0.5) for s in size]
        top = integers(0, height - side[0] % 2) - side[0] // 2
        left = integers(0, width - side[1] % 2) - side[1] // 2
        draw["kept_rows"] = ~_within(height, top, side[0])
        draw["kept_columns"] = ~_within(width, left, side[1])
    return draw


def augment(images: Float[Tensor, "G *n C H W"], draw: Draw) -> Float[Tensor, "G *n C H W"]:
    """Applies a draw, differentiably in the images.

    Args:
        images: Normalized images of shape ``(G, n, C, H, W)``, or ``(G, C, H, W)`` for one image in each group.
        draw: The draw of :func:`draw_augmentation` with G groups, on the images' device.

    Returns:
        The augmented images, of the same shape.
    """
    if images.ndim == 4:
        return augment(images.unsqueeze(1), draw).squeeze(1)
    groups, count, channels, height, width = images.shape
    if "brightness" in draw:
        strengths = [draw[name].to(images.dtype) for name in ("brightness", "saturation", "contrast")]
        brightness, saturation, contrast = (each.view(groups, 1, 1, 1, 1) for each in strengths)
        images = images + brightness
        gray = images.mean(2, keepdim=True)
        images = torch.lerp(gray, images, saturation)
        mean = images.mean((2, 3, 4), keepdim=True)
        images = torch.lerp(mean, images, contrast)
    if "affine" in draw:
        grid = F.affine_grid(draw["affine"].to(images.dtype), [groups, 1, height, width], align_corners=False)
        # Every image of a group shares the grid, so the group's images are sampled as channels of one.
        stacked = images.reshape(groups, count * channels, height, width)
        images = F.grid_sample(stacked, grid, align_corners=False).view_as(images)
    if "rows" in draw:
        images = _take(images, draw["rows"], 3)
        images = _take(images, draw["columns"], 4)
    if "kept_rows" in draw:
        kept = draw["kept_rows"][:, :, None] | draw["kept_columns"][:, None, :]
        images = images * kept[:, None, None]
    return images


def _uniform(groups: int, generator: torch.Generator, low: float, high: float, *shape: int) -> torch.Tensor:
    """Draws from [low, high) for each group, ``(G, *shape)``."""
    return torch.rand(groups, *shape, generator=generator) * (high - low) + low


def _integers(groups: int, generator: torch.Generator, low: int, high: int) -> torch.Tensor:
    """Draws from low, ..., high for each group, ``(G,)``."""
    return torch.randint(low, high + 1, (groups,), generator=generator)


def _shifted(side: int, shift: torch.Tensor) -> torch.Tensor:
    """Returns the source index of every target index, ``(G, side)``; -1 where it lies outside."""
    source = torch.arange(side) + shift[:, None]
    return torch.where((source >= 0) & (source < side), source, -1)


def _within(side: int, start: torch.Tensor, length: int) -> torch.Tensor:
    position = torch.arange(side)
    return (position >= start[:, None]) & (position < start[:, None] + length)


def _take(images: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    shape = [len(index), 1, 1, 1, 1]
    shape[dim] = index.shape[1]
    index = index.view(shape)
    taken = images.gather(dim, index.clamp(min=0).expand_as(images))
    return taken * (index >= 0)


def _affine(scale: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Returns the maps from output to input positions, ``(G, 2, 3)``: rotated by ``angle`` ``(G,)``, then scaled by
    ``scale`` ``(G, 2)`` in x and y."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], 1)
    return scale[:, :, None] * turn
