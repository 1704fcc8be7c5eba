"""The images of a compact set as one picture, with a row for each class."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torchvision.utils import make_grid

from tgdd_plugin.core.atomic_files import whole_file


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


def write_picture(path: Path, grid: torch.Tensor, min_side: int = 600) -> Path:
    """Writes a grid as PNG, enlarged by a whole factor (nearest) until its longer side has ``min_side`` pixels."""
    factor = max(1, round(min_side / max(grid.shape[1:])))
    grid = grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    with whole_file(path) as temporary:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    return path
