"""The images of a report: of each class real ones beside distilled ones, as small PNGs within the HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms.functional import resize

from tgdd_plugin.core.bounded_reading import MIB
from tgdd_plugin.data.film_strip import shrunk

REAL, DISTILLED = 5, 10
"""The most images of a class of each kind."""

SIDE = 128
"""Pixels of the longer side, to which larger images are shrunk."""

RAW_SIZE = MIB
"""Most bytes of the pixels of a set's images before compression; so many images and classes are shown as fit."""

MOST_CLASSES = 100
"""The most classes that are shown."""


@dataclass(frozen=True)
class Strip:
    """Images of a class, side by side.

    Args:
        uri: The picture as a data URI.
        count: The number of images.
        size: Width and height of an image in pixels.
    """

    uri: str
    count: int
    size: tuple[int, int]


@dataclass(frozen=True)
class ClassRow:
    """A class' name and its images; ``None`` where there are none of a kind."""

    name: str
    real: Strip | None
    distilled: Strip | None


Labelled = tuple[torch.Tensor, torch.Tensor]
"""uint8 images ``(N, C, H, W)`` and their class ids ``(N,)``."""


def class_rows(classes: Sequence[str], distilled: Labelled, real: Labelled | None) -> list[ClassRow]:
    """Returns the images of each class, the first few of both kinds.

    Args:
        classes: The names of the classes.
        distilled: The images of the set.
        real: Real images with the same class ids, if there are any.
    """
    channels, *size = distilled[0].shape[1:]
    height, width = shrunk(size, SIDE)
    fitting = max(1, RAW_SIZE // (channels * height * width))
    shown = min(len(classes), MOST_CLASSES, max(1, fitting // 2))
    each = fitting // shown
    most = max(1, min(DISTILLED, each * DISTILLED // (REAL + DISTILLED)))
    rows = []
    for label in range(shown):
        own = _strip(distilled, label, most)
        rows.append(ClassRow(classes[label], real and _strip(real, label, min(REAL, most)), own))
    return rows


def _strip(kind: Labelled, label: int, most: int) -> Strip | None:
    images, labels = kind
    chosen = images[labels == label][:most]
    if not len(chosen):
        return None
    chosen = resize(chosen, list(shrunk(chosen.shape[-2:], SIDE)), antialias=True)
    # (M, C, H, W) to (H, M·W, C)
    pixels = chosen.permute(2, 0, 3, 1).flatten(1, 2)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2).contiguous().numpy()).save(file, "PNG", optimize=True)
    return Strip(data_uri(file.getvalue()), len(chosen), (chosen.shape[-1], chosen.shape[-2]))


def data_uri(png: bytes) -> str:
    """Returns a PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
