"""How images changed, as one PNG: a row of small images for each step, from the start to the end.

Left of the images stand the steps, above them the classes; the picture notes where the images begin, and how much they
are enlarged (``pixels``). Pictures of earlier versions are the images alone, without such a note.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torchvision.transforms.functional import resize

from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.bounded_reading import MIB, read_bounded
from tgdd_plugin.core.errors import shown
from tgdd_plugin.data.picture_note import note_of

MOST_COLUMNS, MOST_FRAMES = 20, 13
"""The most images in a row, and the most rows."""

SIDE = 48
"""Pixels of the longer side, to which larger images are shrunk."""

SEEN, LETTERS, GAP = 64, 10, 4
"""Pixels to which the longer side is about enlarged by whole pixels; those of the letters' height, and beside words."""

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
        png: The pixels alone as PNG, not enlarged.
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
    path: str | Path,
    frames: Mapping[int, torch.Tensor],
    labels: Sequence[int],
    images: torch.Tensor,
    classes: Sequence[str],
) -> Path:
    """Writes a film strip as PNG, with the step left of each row and the classes above the columns.

    Args:
        path: The file.
        frames: The images of each step, uint8 ``(M, C, H, W)``; larger ones than :data:`SIDE` are shrunk.
        labels: The class id of each of the M images.
        images: All images at the end, uint8 ``(N, C, H, W)``, whose checksum is noted.
        classes: The names of the K classes.
    """
    steps = sorted(frames)
    size = list(shrunk(frames[steps[0]].shape[-2:], SIDE))
    # (F, M, C, H, W) to (F·H, M·W, C)
    pixels = torch.stack([resize(frames[step], size, antialias=True) for step in steps]).permute(0, 3, 1, 4, 2)
    pixels = pixels.reshape(len(steps) * size[0], -1, pixels.shape[-1])
    scale = max(1, round(SEEN / max(size)))
    columns = [classes[label] for label in labels]
    large = _enlarged(Image.fromarray(pixels.squeeze(2).numpy()), scale, len(steps), len(columns))
    picture, left, top = _labelled(large, steps, columns)
    text = PngImagePlugin.PngInfo()
    notes = {"Title": note_of(images), "steps": steps, "labels": list(labels), "pixels": [left, top, scale]}
    for key, value in notes.items():
        text.add_text(key, value if isinstance(value, str) else " ".join(map(str, value)))
    write_whole(Path(path), _png(picture, pnginfo=text))
    return Path(path)


def _enlarged(pixels: Image.Image, scale: int, rows: int, columns: int) -> Image.Image:
    """Pixels enlarged by ``scale``, with white lines between the images."""
    large = pixels.resize((pixels.width * scale, pixels.height * scale), Image.Resampling.NEAREST)
    if scale > 1:  # on the first of the pixels that each became, which read_strip() does not look at
        draw = ImageDraw.Draw(large)
        for x in range(large.width // columns, large.width, large.width // columns):
            draw.line([(x, 0), (x, large.height)], "white")
        for y in range(large.height // rows, large.height, large.height // rows):
            draw.line([(0, y), (large.width, y)], "white")
    return large


def _labelled(large: Image.Image, steps: Sequence[int], columns: Sequence[str]) -> tuple[Image.Image, int, int]:
    """Images with words beside them; and how far from the left and the top they begin."""
    from tgdd_plugin.core.figures import font_path  # loads matplotlib, which takes a second

    font = ImageFont.truetype(font_path(), LETTERS)
    rows = [f"{step:,}" for step in steps]
    left = GAP * 2 + round(max(map(font.getlength, ["step", *rows])))
    top = GAP * 2 + LETTERS
    picture = Image.new(large.mode, (left + large.width, top + large.height), "white")
    picture.paste(large, (left, top))
    draw = ImageDraw.Draw(picture)
    draw.text((left - GAP, top - GAP), "step", "black", font, "rs")
    high, wide = large.height / len(rows), large.width / len(columns)
    for number, row in enumerate(rows):
        draw.text((left - GAP, top + (number + 0.5) * high), row, "black", font, "rm")
    begin = 0
    for name, same in groupby(columns):  # images of one class stand beside each other
        count = len(list(same))
        word = _fitting(name, font, count * wide - 2)
        draw.text((left + (begin + count / 2) * wide, top - GAP), word, "black", font, "ms")
        begin += count
    return picture, left, top


def _fitting(name: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a name as is not wider."""
    name = word = shown(name, 60)
    while len(name) > 1 and font.getlength(word) > width:
        name = name[:-1]
        word = f"{name}…"
    return word


def _png(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, **options)
    return file.getvalue()


def read_strip(path: str | Path) -> FilmStrip:
    """Reads a film strip that :func:`write_strip` wrote.

    Raises:
        ValueError: If it is none; also an :class:`InputError`, which is a ``ValueError``.
        OSError: If it cannot be read.
    """
    png = read_bounded(path, FILE_SIZE, "picture")
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            steps, labels, place = (
                [int(n) for n in str(picture.info.get(key, "")).split()] for key in ("steps", "labels", "pixels")
            )
            left, top, scale = place or (0, 0, 1)
            width, height = picture.width - left, picture.height - top
            fits = picture.width * picture.height <= FILE_SIZE
            if not (1 <= len(steps) <= 1000 and 1 <= len(labels) <= 1000 and fits):
                raise ValueError("it says of no steps, or of too many")
            if min(left, top) < 0 or min(width, height, scale) < 1:
                raise ValueError("its pixels lie outside of it")
            if height % (len(steps) * scale) or width % (len(labels) * scale):
                raise ValueError("its size is not that of its rows and columns")
            width, height = width // scale, height // scale
            if place:
                box = (left, top, picture.width, picture.height)
                png = _png(picture.resize((width, height), Image.Resampling.NEAREST, box))
            of = str(picture.info.get("Title", ""))
    except (SyntaxError, Image.DecompressionBombError) as error:  # as Pillow says that a PNG is damaged, or too large
        raise ValueError(str(error)) from None
    return FilmStrip(steps, labels, png, (width // len(labels), height // len(steps)), of)


def shrunk(height_and_width: Sequence[int], side: int) -> tuple[int, int]:
    """Returns the size of a picture whose longer side is shrunk to ``side`` pixels where it has more."""
    height, width = height_and_width
    share = min(1.0, side / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))
