"""How images changed, as one PNG: a row of small images for each step, from the start to the end."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torchvision.transforms.functional import resize

from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.bounded_reading import MIB, read_bounded
from tgdd_plugin.data.picture_note import note_of

MOST_COLUMNS, MOST_FRAMES = 20, 13
"""The most images in a row, and the most rows."""

SIDE = 48
"""Pixels of the longer side, to which larger images are shrunk."""

RAW_SIZE = 600_000
"""Most bytes of all pixels before compression; so many images are shown as fit."""

FILE_SIZE = 4 * MIB
"""Most bytes of a file that is read, and of its pixels."""


@dataclass(frozen=True)
class FilmStrip:
    """A film strip that was read.

    Args:
        steps: The step of each row.
        labels: The class id of each column.
        png: The file's bytes.
        size: Width and height of a single image in pixels.
        of: What the last row is of, by :func:`tgdd_plugin.data.picture_note.note_of`.
    """

    steps: list[int]
    labels: list[int]
    png: bytes
    size: tuple[int, int]
    of: str


def strip_columns(classes: int, per_class: int, shape: Sequence[int]) -> tuple[int, int]:
    """Returns how many classes a strip shows, and how many images of each.

    Args:
        classes, per_class: What there is.
        shape: (C, H, W) of an image.
    """
    height, width = shrunk(shape[-2:], SIDE)
    fitting = max(1, RAW_SIZE // (MOST_FRAMES * shape[0] * height * width))
    columns = min(MOST_COLUMNS, fitting)
    shown = min(classes, columns)
    # A row of about ten images is enough: small files, and few classes are shown with several images of each.
    return shown, max(1, min(per_class, min(columns, 10) // shown))


def write_strip(
    path: str | Path, frames: Mapping[int, torch.Tensor], labels: Sequence[int], images: torch.Tensor
) -> Path:
    """Writes a film strip as PNG.

    Args:
        path: The file.
        frames: The images of each step, uint8 ``(M, C, H, W)``; larger ones than :data:`SIDE` are shrunk.
        labels: The class id of each of the M images.
        images: All images at the end, uint8 ``(N, C, H, W)``, whose checksum is noted.
    """
    steps = sorted(frames)
    size = list(shrunk(frames[steps[0]].shape[-2:], SIDE))
    # (F, M, C, H, W) to (F·H, M·W, C)
    pixels = torch.stack([resize(frames[step], size, antialias=True) for step in steps]).permute(0, 3, 1, 4, 2)
    pixels = pixels.reshape(len(steps) * size[0], -1, pixels.shape[-1])
    text = PngImagePlugin.PngInfo()
    for key, value in {"Title": note_of(images), "steps": steps, "labels": list(labels)}.items():
        text.add_text(key, value if isinstance(value, str) else " ".join(map(str, value)))
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2).numpy()).save(file, "PNG", optimize=True, pnginfo=text)
    write_whole(Path(path), file.getvalue())
    return Path(path)


def read_strip(path: str | Path) -> FilmStrip:
    """Reads a film strip that :func:`write_strip` wrote.

    Raises:
        ValueError: If it is none; also an :class:`InputError`, which is a ``ValueError``.
        OSError: If it cannot be read.
    """
    png = read_bounded(path, FILE_SIZE, "picture")
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            width, height = picture.size
            steps, labels = ([int(n) for n in str(picture.info.get(key, "")).split()] for key in ("steps", "labels"))
            of = str(picture.info.get("Title", ""))
    except (SyntaxError, Image.DecompressionBombError) as error:  # as Pillow says that a PNG is damaged, or too large
        raise ValueError(str(error)) from None
    if not (1 <= len(steps) <= 1000 and 1 <= len(labels) <= 1000 and width * height <= FILE_SIZE):
        raise ValueError("it says of no steps, or of too many")
    if height % len(steps) or width % len(labels):
        raise ValueError("its size is not that of its rows and columns")
    return FilmStrip(steps, labels, png, (width // len(labels), height // len(steps)), of)


def shrunk(height_and_width: Sequence[int], side: int) -> tuple[int, int]:
    """Returns the size of a picture whose longer side is shrunk to ``side`` pixels where it has more."""
    height, width = height_and_width
    share = min(1.0, side / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))
