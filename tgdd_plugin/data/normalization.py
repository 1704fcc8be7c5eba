"""Images as networks take them: normalised for each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 images ``(..., C, H, W)`` as float32, with per-channel ``mean`` and ``std`` for pixels in [0, 1]."""
    shift, scale = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
    return (images.float() / 255 - shift) / scale
