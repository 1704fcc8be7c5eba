"""Writing and reading a ``.beton`` (FFCV) and the card beside it.

The file is plain FFCV: ``image`` (raw uint8 RGB), ``label`` (int) and, where there are any, ``soft_label`` (float32).
A stock ``ffcv.Loader`` with the usual pipelines reads it. What FFCV has no place for lies in the card,
``<name>.beton.yaml``. FFCV itself writes the format and parses its tables; it is imported only when a function is
called.

A packed file holds the stored images of multi-formation, as its card says; :func:`read_beton` decodes them, FFCV
cannot. For a stock ``ffcv.Loader``, write it once more as a plain one, with the same images::

    write_beton("plain.beton", *read_beton("packed.beton"), replace(read_card("packed.beton"), packed=False))
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tgdd_plugin.beton.card import Card, card_path, find_mismatch, read_card
from tgdd_plugin.beton.factors import MOST_PACKED
from tgdd_plugin.beton.ffcv_tables import MIN_PAGE, check_beton
from tgdd_plugin.beton.ffcv_threads import restored_threads
from tgdd_plugin.beton.multi_formation import unpack
from tgdd_plugin.core.atomic_files import sha256, whole_file, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.locks import locked
from tgdd_plugin.data.allocation import allocate

SUM_TOLERANCE = 1e-3
"""How far from 1 the soft labels of an image may sum up to, as those rounded to half precision do."""


def write_beton(
    path: str | os.PathLike[str],
    images: torch.Tensor,
    labels: torch.Tensor,
    card: Card,
    soft_labels: torch.Tensor | None = None,
) -> Path:
    """Writes a ``.beton`` and its card, each whole.

    Args:
        path: The file to write.
        images: uint8 images, ``(N, C, H, W)``; grayscale ones (C = 1) are written three times. The stored images if
            the card says ``packed``.
        labels: Class ids, ``(N,)``.
        card: The card, whose ``images``, ``shape`` and ``sha256`` are filled in here.
        soft_labels: Class probabilities ``(N, K)``, at least 0, which sum to 1 for each image; not for packed images,
            whose parts would have to share one. Default: ``None``, none are written.

    Raises:
        InputError: If shapes, types or values are not as said. FFCV's writer would wait for ever on such an image, so
            everything is checked before it starts.
    """
    path = Path(path)
    arrays = _checked_arrays(images, labels, card, soft_labels)
    sample = sum(a[0].nbytes for a in arrays if a.ndim > 1)
    # Whoever adds accuracies to the card at the same time waits, and finds the card of the new file.
    with locked(card_path(path), wait=60), whole_file(path) as temporary:
        check_room(path.parent, len(images), sample)
        with restored_threads():
            from ffcv.fields import IntField, NDArrayField, RGBImageField
            from ffcv.writer import DatasetWriter

        written = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        if soft_labels is not None:
            written["soft_label"] = NDArrayField(np.dtype("float32"), (len(card.classes),))
        # One worker writes the same bytes every time. Its progress bar would be of a second's work.
        with contextlib.redirect_stderr(io.StringIO()), mock.patch("ffcv.writer.Process", _InThisProcess):
            writer = DatasetWriter(str(temporary), written, page_size=_page_size(sample), num_workers=1)
            writer.from_indexed_dataset(_Rows(arrays))
        card.sha256 = sha256(temporary)
        # The card first: a process that is killed in between leaves a card alone, or one of another file than that
        # beside it, and nothing takes either for a result.
        write_whole(card_path(path), card.text())
    return path


def _checked_arrays(
    images: torch.Tensor, labels: torch.Tensor, card: Card, soft_labels: torch.Tensor | None
) -> list[np.ndarray]:
    """Returns the fields of the file as arrays, checked against each other and the card, whose counts are filled in."""
    arrays = [_rgb(images), labels.cpu().numpy().astype(np.int64)]
    if len(images) == 0 or labels.shape != (len(images),) or labels.is_floating_point():
        shape = tuple(labels.shape)
        raise InputError(
            f"`labels` must be an integer for each of at least one image, got {labels.dtype} of shape {shape} for "
            f"{len(images)} images. Give one class id for each image."
        )
    normalization = card.normalization  # which refuses what the card could not be read with again
    card.mean, card.std = list(normalization.mean), list(normalization.std)
    if not len(card.mean) == len(card.std) == images.shape[1]:
        raise InputError(
            f"The card's mean and std must have {images.shape[1]} value(s) each, one for each channel of the images, "
            f"got mean {card.mean} and std {card.std}. Correct the card."
        )
    if card.packed and card.factor > MOST_PACKED:
        raise InputError(
            f"The card's factor must be at most {MOST_PACKED} for packed images, got {card.factor}. Write them decoded."
        )
    card.images, card.shape = len(images) * card.parts, list(images.shape[1:])
    if mismatch := find_mismatch(card, arrays[1], *images.shape[2:]):
        raise InputError(f"The images and their card do not fit each other: {mismatch}. Correct the card.")
    if soft_labels is not None:
        _check_soft_labels(soft_labels, len(images), card)
        arrays.append(np.ascontiguousarray(soft_labels.detach().float().cpu().numpy()))
    return arrays


def _check_soft_labels(soft_labels: torch.Tensor, count: int, card: Card) -> None:
    if card.packed:
        raise InputError(
            f"`soft_labels` must be left out for packed images, got shape {tuple(soft_labels.shape)}. Write the images "
            f"decoded, with a soft label for each."
        )
    shape, finite = (count, len(card.classes)), bool(soft_labels.isfinite().all())
    if soft_labels.shape != shape or not finite:
        raise InputError(
            f"`soft_labels` must be finite values of shape {shape}, got shape {tuple(soft_labels.shape)}, "
            f"{'finite' if finite else 'not all finite'}. Give a probability for each class of each image."
        )
    if not are_probabilities(soft_labels):
        wrong = int(((soft_labels.double().sum(1) - 1).abs() > SUM_TOLERANCE).sum())
        raise InputError(
            f"`soft_labels` must be at least 0 and sum to 1 for each image, got {float(soft_labels.min()):.4g} as the "
            f"least and another sum for {wrong} of {count} images. Give a probability for each class of each image (of "
            f"logits, softmax(1))."
        )


def are_probabilities(soft_labels: torch.Tensor) -> bool:
    """Whether soft labels ``(N, K)`` are at least 0, and sum to 1 for each image up to :data:`SUM_TOLERANCE`."""
    sums = soft_labels.double().sum(1)
    return bool((soft_labels >= 0).all() and ((sums - 1).abs() <= SUM_TOLERANCE).all())


class _InThisProcess:
    """Takes the place of the process that FFCV's writer starts: for one that dies it would wait for ever."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.start = functools.partial(target, *args)


def _page_size(sample: int) -> int:
    page = MIN_PAGE
    while page < sample:  # a sample must fit in one page
        page *= 2
    return page


def check_room(folder: Path, count: int, sample: int) -> None:
    """Checks that there is room for a ``.beton``: on a full disk FFCV may write less than it was told, and say nothing.

    Args:
        folder: The folder that the file is written into.
        count: The number of its samples.
        sample: The bytes of each; an image has three of each pixel.

    Raises:
        InputError: If there is not.
    """
    # Pages of samples, one begun and two around the header, and below 100 bytes a sample in FFCV's tables.
    page = _page_size(sample)
    needed = page * (3 + count // (page // sample)) + 100 * count
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"The folder '{folder}' has {free / 2**20:.0f} MiB left, and {needed / 2**20:.0f} are needed. Make room "
            f"there."
        )


class _Rows:
    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(int(a[index]) if a.ndim == 1 else a[index] for a in self.arrays)


def _rgb(images: torch.Tensor) -> np.ndarray:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"`images` must be uint8 (N, C, H, W), C 1 or 3, got {images.dtype} {tuple(images.shape)}. Permute or "
            f"convert them."
        )
    return np.ascontiguousarray(images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def read_beton(path: str | os.PathLike[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the images and labels of any ``.beton`` with fields ``image`` (raw or JPEG) and ``label``.

    Returns:
        uint8 images ``(N, C, H, W)``, with C = 1 if the file has a card that says so and else 3, and labels ``(N,)``. A
        packed file's images are decoded, and rounded to uint8 again.

    Raises:
        InputError: If there is no such file, it is not such a ``.beton``, it is damaged or not the one that its card
            describes, or its images have several sizes.
    """
    images, labels, card = read_stored(path)
    if card is not None and card.packed:
        return unpack(images, card.factor), labels.repeat_interleave(card.parts)
    return images, labels


def read_stored(path: str | os.PathLike[str]) -> tuple[torch.Tensor, torch.Tensor, Card | None]:
    """Reads as :func:`read_beton`, but a packed file's images as stored, and the card, if there is one."""
    if not Path(path).is_file():
        raise InputError(f"There is no file '{path}'. Name a .beton.")
    # Before FFCV parses a byte: it believes whatever a file says.
    card = read_card(path) if card_path(path).is_file() else None
    tables = check_beton(Path(path), card)
    images = allocate((len(tables.labels), card.shape[0] if card else 3, tables.height, tables.width))
    rows = images.numpy()
    # Not by FFCV's Loader: for that, it compiles for a second or two, and it would wait for ever on a damaged JPEG.
    content = np.memmap(path, np.uint8, mode="r")
    for i, (start, size, raw) in enumerate(zip(tables.starts, tables.sizes, tables.raw, strict=True)):
        data = content[start : start + size]
        size = tables.height, tables.width
        pixels = data.reshape(*size, 3) if raw else _from_jpeg(data, size)
        if pixels is None:
            raise InputError(f"Image {i} of '{path}' is damaged. Copy or write the file again.")
        if raw and rows.shape[1] == 1 and (pixels != pixels[..., :1]).any():
            raise InputError(f"Image {i} of '{path}' has colors, and its card says one channel. Correct the card.")
        rows[i] = pixels.transpose(2, 0, 1)[: rows.shape[1]]
    labels = torch.from_numpy(tables.labels.astype(np.int64))
    return images, labels, card


def read_soft_labels(path: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    """Reads the soft labels of a ``.beton`` that :func:`read_beton` has read, in the order of its images.

    Args:
        path: The file.
        shape: The number of images and of classes (N, K).

    Returns:
        float32 of that shape; ``None`` if the file has no such field.

    Raises:
        InputError: If the field is of another type or shape.
    """
    with restored_threads():
        from ffcv.reader import Reader

    reader = Reader(str(path))  # read_beton() has checked the tables
    if "soft_label" not in reader.field_names:
        return None
    field = reader.handlers["soft_label"]
    content = np.memmap(path, np.uint8, mode="r")
    width = 4 * shape[1]
    starts = reader.metadata[f"f{reader.field_names.index('soft_label')}"]
    fits = getattr(field, "dtype", None) == np.float32 and tuple(field.shape) == shape[1:] and len(starts) == shape[0]
    if not fits or int(starts.max()) + width > len(content):
        raise InputError(f"The soft labels of '{path}' are not float32 of {shape[1]} classes each. Write it again.")
    rows = [content[int(start) : int(start) + width].view(np.float32) for start in starts]
    return torch.from_numpy(np.stack(rows))


def _from_jpeg(data: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Decodes a JPEG of ``size`` (H, W); ``None`` if it is damaged, or of another size, which is not decoded."""
    try:
        image = Image.open(io.BytesIO(data.tobytes()), formats=["JPEG"])
        return np.asarray(image.convert("RGB")) if image.size == size[::-1] else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
