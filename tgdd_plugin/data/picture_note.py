"""What a picture notes of the images that it shows, to be told from a picture of other images."""

from __future__ import annotations

import hashlib

import torch


def note_of(images: torch.Tensor) -> str:
    """Returns the note on all images of a set, for the title that a PNG or SVG keeps.

    Args:
        images: uint8, ``(N, C, H, W)``.
    """
    return f"images with SHA-256 {hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()}"
