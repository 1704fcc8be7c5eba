"""Images in the one form that this package works with, uint8, and as networks take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from tgdd_plugin.core.errors import InputError


def to_pair(item: Any, position: int) -> tuple[torch.Tensor, int]:
    """An item of a data set as a uint8 image of shape (C, H, W), C 1 or 3, and its class id.

    Args:
        item: The pair (image, label): a PIL image, a uint8 array ``(H, W)`` or ``(H, W, C)``, or a tensor ``(H, W)`` or
            ``(C, H, W)``, uint8 or floating point in [0, 1]; and a whole number.
        position: Of the item, to be named in an error.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InputError(f"item {position} of the data set is a {type(item).__name__}; wanted a pair (image, label)")
    image, label = item
    try:
        number = int(label)
        whole = bool(number == label)  # neither a fraction nor text
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise InputError(
            f"the label of item {position} is {' '.join(repr(label).split())}; wanted one integer class id (soft and "
            f"multiple labels cannot be sorted by class)"
        )
    return _to_uint8(image, position), number


def _to_uint8(image: Any, position: int) -> torch.Tensor:
    """An image in any of the accepted forms as uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise InputError(
                f"image {position} is a PIL image of mode '{image.mode}'; wanted 8 bits a channel. Scale it to 0..255 "
                f"first: PIL itself would cut the values off there"
            )
        if image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise InputError(
                f"image {position} is a {image.dtype} array of shape {image.shape}; wanted uint8 (H, W) or (H, W, C)"
            )
        array = np.ascontiguousarray(image[:, :, None] if image.ndim == 2 else image)
        image = torch.from_numpy(array.copy()).permute(2, 0, 1)
    if not isinstance(image, torch.Tensor):
        raise InputError(f"image {position} is a {type(image).__name__}; wanted PIL, a uint8 array or a tensor")
    if image.ndim == 2:
        image = image.unsqueeze(0)
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (0 <= low and high <= 1):
            raise InputError(
                f"image {position} has values from {low:.2f} to {high:.2f}; wanted [0, 1]. Give the data set without "
                f"Normalize: distillation normalises by itself"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"image {position} is {image.dtype} of shape {tuple(image.shape)}; wanted (C, H, W) with 1 or 3 channels, "
            f"uint8 or floating point in [0, 1]"
        )
    return image
