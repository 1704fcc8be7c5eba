"""The figure of a compact set: its images by class, beside those that they started from."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tgdd_plugin.core.atomic_files import whole_file
from tgdd_plugin.core.bounded_reading import open_regular
from tgdd_plugin.core.errors import printable
from tgdd_plugin.core.figures import Axes, Figure, rc_context
from tgdd_plugin.data.picture_note import note_of

PER_CLASS, WRAPPED = 10, 5
"""The most images of a class in a row, and the classes in a row where each has one image alone."""

MOST_CLASSES = 100
"""The most classes that are drawn."""

LONGEST_NAME = 24
"""The most characters of a class' name."""

LETTERS = 17
"""The letters of a name that fit below an image of one inch."""

NAME = 0.3
"""The height of a name below an image, as a share of the image's."""

PIXELS = 48
"""The width of a small image on the screen; a larger image gets as many pixels as it has, up to twice that."""

DOTS = 150
"""The resolution of the figure, per inch."""


def draw_set(
    path: str | Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    *,
    start: torch.Tensor | None = None,
) -> Path:
    """Draws the images of a set as PNG or SVG: a row for each class, with its name, of its first ten images.

    Where each class has one image, the classes are wrapped. The caption says what part of the set is shown.

    Args:
        path: The file; its suffix says which of the two (``.svg``, otherwise PNG).
        images: uint8, ``(N, C, H, W)``.
        labels: Class ids, ``(N,)``.
        classes: The names of the K classes.
        start: The images at the start, in the same order and form. Default: ``None``, they are left out.
    """
    path = Path(path)
    # Letters that the font lacks are drawn as boxes, and the same images give the same bytes.
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "tgdd", "svg.fonttype": "none"}):
        warnings.simplefilter("ignore")
        figure = set_figure(images, labels, classes, start=start)
        form = "svg" if path.suffix.lower() == ".svg" else "png"
        of = note_of(images)
        metadata: dict[str, Any] = {"Date": None, "Title": of} if form == "svg" else {"Software": None, "Title": of}
        with whole_file(path) as temporary:
            figure.savefig(temporary, format=form, dpi=DOTS, metadata=metadata, bbox_inches="tight")
    return path


def set_figure(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], *, start: torch.Tensor | None = None
) -> Figure:
    """Returns the figure that :func:`draw_set` draws, for Matplotlib to show or save."""
    shown = [label for label in range(len(classes)) if bool((labels == label).any())][:MOST_CLASSES]
    most = max(int((labels == label).sum()) for label in shown)
    wrapped = most == 1
    columns = min(WRAPPED, len(shown)) if wrapped else min(most, PER_CLASS)
    rows = math.ceil(len(shown) / columns) * (1 + NAME) if wrapped else len(shown)
    height, width = images.shape[-2:]
    side = min(max(1.6 * PIXELS if wrapped else PIXELS, width), 2 * PIXELS) / 100
    blocks = [("start", start), ("distilled", images)] if start is not None else [("", images)]
    names = 0 if wrapped else 0.085 * min(LONGEST_NAME, max(len(classes[label]) for label in shown))
    high = rows * side * height / width + 0.6
    wide = (columns * side + 0.15) * len(blocks) + names + 0.1
    figure = Figure(figsize=(max(wide, 3.2), high), layout="constrained")
    for axes, (title, block) in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True):
        cells = _cells(block, labels, shown, columns, wrapped)
        # Below an image, a name has no more room than the image.
        longest = min(LONGEST_NAME, int(LETTERS * side)) if wrapped else LONGEST_NAME
        _draw(axes, cells, [_short(classes[label], longest) for label in shown], wrapped, first=block is blocks[0][1])
        axes.set_title(title, fontsize=9)
    figure.supxlabel(_caption(labels, classes, shown, columns), fontsize=8)
    return figure


def set_picture(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], *, start: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the same figure as an image in [0, 1], float32 ``(3, H, W)``, which loggers take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure, png = set_figure(images, labels, classes, start=start), io.BytesIO()
        figure.savefig(png, format="png", dpi=DOTS, bbox_inches="tight")
    with Image.open(png) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def is_drawing_of(path: str | Path, images: torch.Tensor) -> bool:
    """Whether a PNG is a figure of these images that :func:`draw_set` drew."""
    try:
        with open_regular(Path(path)) as file, Image.open(file, formats=["PNG"]) as picture:
            return picture.info.get("Title") == note_of(images)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # or what Pillow says of a damaged one
        return False


def _cells(
    images: torch.Tensor, labels: torch.Tensor, shown: Sequence[int], columns: int, wrapped: bool
) -> list[tuple[int, int, torch.Tensor]]:
    """Row, column and image of every cell."""
    found = []
    for row, label in enumerate(shown):
        for column, image in enumerate(images[labels == label][:columns]):
            found.append((row // columns, row % columns, image) if wrapped else (row, column, image))
    return found


def _draw(
    axes: Axes, cells: list[tuple[int, int, torch.Tensor]], names: Sequence[str], wrapped: bool, first: bool
) -> None:
    """Draws a block of images, a unit of the axes for each."""
    pitch, gap = 1 + (NAME if wrapped else 0), 0.04
    for row, column, image in cells:
        pixels, top = image.permute(1, 2, 0).expand(-1, -1, 3).numpy(), row * pitch
        extent = (column + gap, column + 1 - gap, top + 1 - gap, top + gap)
        axes.imshow(pixels, extent=extent, interpolation="none", aspect="auto")
    rows, columns = max(cell[0] for cell in cells) + 1, max(cell[1] for cell in cells) + 1
    axes.set(xlim=(0, columns), ylim=(rows * pitch, 0))
    height, width = cells[0][2].shape[-2:]
    axes.set_aspect(height / width)
    axes.set_frame_on(False)
    axes.set_xticks([])
    if wrapped:
        axes.set_yticks([])
        for place, name in enumerate(names):
            where = (place % WRAPPED + 0.5, place // WRAPPED * pitch + 1 - gap)
            axes.annotate(name, where, (0, -1), textcoords="offset points", ha="center", va="top", fontsize=7)
    else:
        axes.set_yticks([row + 0.5 for row in range(len(names))], names if first else [""] * len(names), fontsize=8)
        axes.tick_params(length=0)
    for text in [*axes.texts, *axes.get_yticklabels()]:
        text.set_parse_math(False)  # a class may be called $x$


def _short(name: str, longest: int) -> str:
    name = printable(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _caption(labels: torch.Tensor, classes: Sequence[str], shown: Sequence[int], columns: int) -> str:
    counts = [int((labels == label).sum()) for label in shown]
    few, most = min(counts), max(counts)
    number = f"{most}" if few == most else f"{few} to {most}"
    images = f"{columns} of {number} images" if most > columns else f"{number} image" + ("s" if most > 1 else "")
    text = f"{images} of each class"
    return text if len(shown) == len(classes) else f"{text}, {len(shown)} of {len(classes)} classes"
