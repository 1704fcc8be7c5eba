"""The images of a compact set as one tensor, with a row for each class, for loggers."""

from __future__ import annotations

import torch
from torchvision.utils import make_grid


def make_image_grid(images: torch.Tensor, labels: torch.Tensor, per_class: int = 10) -> torch.Tensor:
    """Arranges images in a grid with a row for each class, of its first ``per_class`` images.

    Args:
        images: uint8, of shape ``(N, C, H, W)``.
        labels: Class ids of shape ``(N,)``.
        per_class: The most columns. Default: ``10``.

    Returns:
        A uint8 image of shape ``(3, height, width)``, with a white line of 2 pixels between images.
    """
    groups = [images[labels == label][:per_class] for label in labels.unique()]
    columns = max(len(group) for group in groups)
    blank = images.new_full(images.shape[1:], 255)
    cells = [image for group in groups for image in [*group, *[blank] * (columns - len(group))]]
    return make_grid(torch.stack(cells), nrow=columns, padding=2, pad_value=255)
