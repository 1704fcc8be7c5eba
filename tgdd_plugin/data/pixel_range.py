"""The normalization of images, found by what it did to them."""

from __future__ import annotations

import torch

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.normalization import Normalization

TOLERANCE = 0.02
"""The largest difference, in standard deviations, from what counts as one factor and one summand for each channel; half
precision rounds by as much."""

Affine = tuple[torch.Tensor, torch.Tensor]
"""A factor and a summand for each channel, float64 ``(C, 1, 1)``."""


def pixel_scale(images: torch.Tensor) -> float | None:
    """Returns what pixels are counted up to, 1 or 255, as far as a batch ``(N, C, H, W)`` tells; else ``None``."""
    if images.dtype == torch.uint8:
        return 255.0
    low, high = float(images.min()), float(images.max())
    if not images.is_floating_point() or not 0 <= low < high <= 255:
        return None
    if high <= 1:
        return 1.0 if high > 0.5 else None
    return 255.0 if bool((images == images.round()).all()) else None


def affine_between(before: torch.Tensor, after: torch.Tensor) -> Affine | None:
    """Returns the factor and the summand of each channel that turn images into others, if there are such.

    Args:
        before, after: The same images ``(N, C, H, W)``, of any kind of numbers.
    """
    if before.shape != after.shape or not after.is_floating_point():
        return None
    x, y = before.double().cpu(), after.double().cpu()
    mean_x, mean_y = (values.mean((0, 2, 3), keepdim=True)[0] for values in (x, y))
    variance = (x - mean_x).square().mean((0, 2, 3), keepdim=True)[0]
    factor = ((x - mean_x) * (y - mean_y)).mean((0, 2, 3), keepdim=True)[0] / variance
    summand = mean_y - factor * mean_x
    off = (x * factor + summand - y).abs().amax()
    if not bool(factor.isfinite().all()) or not bool((factor > 0).all()) or off > TOLERANCE * float(y.std()):
        return None
    return factor, summand


def normalization_of(pixels: torch.Tensor, affine: Affine | None) -> Normalization | None:
    """Returns the normalization, for pixels in [0, 1], that an affine change of a batch of pixels is.

    Args:
        pixels: The batch before the change, ``(N, C, H, W)``.
        affine: What :func:`affine_between` found.
    """
    scale = pixel_scale(pixels)
    if affine is None or scale is None:
        return None
    std = 1 / (affine[0].flatten() * scale)
    mean = -affine[1].flatten() * std
    try:  # numbers that people wrote had fewer digits than float32 has
        return Normalization(*([round(value, 5) for value in values.tolist()] for values in (mean, std)))
    except InputError:
        return None
