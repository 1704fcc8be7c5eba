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
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tgdd_plugin.beton.card import Card, card_path, find_misfit, read_card
from tgdd_plugin.beton.multi_formation import unpack
from tgdd_plugin.core.atomic_files import sha256, whole_file, write_whole
from tgdd_plugin.core.errors import InputError, brief
from tgdd_plugin.data.image_pool import allocate

MIN_PAGE = 2**21
"""FFCV's smallest page. A file has at least one page of samples and is padded to whole ones: 4 MiB in all."""


RAW = 1
"""FFCV's mode of an image stored as plain pixels; 0 is JPEG."""


def write_beton(
    path: str | Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    card: Card,
    soft_labels: torch.Tensor | None = None,
) -> Path:
    """Writes a ``.beton`` and its card, each whole.

    Args:
        path: The file.
        images: uint8, ``(N, C, H, W)``; grayscale ones (C = 1) are written three times. The stored ones if the card
            says ``packed``.
        labels: Class ids, ``(N,)``.
        card: Its ``images``, ``shape`` and ``sha256`` are filled in here.
        soft_labels: Class probabilities ``(N, K)``, or none; none for packed images, whose parts would have to share
            one.

    Raises:
        InputError: If shapes, types or values are not as said. FFCV's writer would wait for ever on such an image, so
            everything is checked before it starts.
    """
    path = Path(path)
    arrays = [_rgb(images), labels.cpu().numpy().astype(np.int64)]
    if len(images) == 0 or labels.shape != (len(images),) or labels.is_floating_point():
        shape = tuple(labels.shape)
        raise InputError(f"{len(images)} images came with {labels.dtype} labels of shape {shape}; wanted one int each")
    if not len(card.mean) == len(card.std) == images.shape[1]:
        raise InputError(f"the card has mean {card.mean} and std {card.std}; wanted {images.shape[1]} value(s) each")
    card.images, card.shape = len(images) * card.parts, list(images.shape[1:])
    if misfit := find_misfit(card, arrays[1], *images.shape[2:]):
        raise InputError(f"images and card do not fit each other: {misfit}; correct the card")
    if soft_labels is not None and card.packed:
        raise InputError("soft labels came with packed images; write those decoded, with one for each decoded image")
    if soft_labels is not None:
        wanted = (len(images), len(card.classes))
        if soft_labels.shape != wanted or not soft_labels.isfinite().all():
            raise InputError(f"soft labels are {tuple(soft_labels.shape)}; wanted finite values of shape {wanted}")
        arrays.append(np.ascontiguousarray(soft_labels.detach().float().cpu().numpy()))
    sample = sum(a[0].nbytes for a in arrays if a.ndim > 1)
    page = MIN_PAGE
    while page < sample:  # a sample must fit in one page
        page *= 2
    with whole_file(path) as temporary:
        # Pages of samples, one begun and two around the header, and below 100 bytes a sample in FFCV's tables.
        _check_room(path.parent, page * (3 + len(images) // (page // sample)) + 100 * len(images))
        with restored_threads():
            from ffcv.fields import IntField, NDArrayField, RGBImageField
            from ffcv.writer import DatasetWriter

        written = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        if soft_labels is not None:
            written["soft_label"] = NDArrayField(np.dtype("float32"), (len(card.classes),))
        # One worker writes the same bytes every time. Its progress bar would be of a second's work.
        with contextlib.redirect_stderr(io.StringIO()), mock.patch("ffcv.writer.Process", _InThisProcess):
            DatasetWriter(str(temporary), written, page_size=page, num_workers=1).from_indexed_dataset(_Rows(arrays))
        card.sha256 = sha256(temporary)
        text = card.text()  # what cannot be written as YAML fails here, while the earlier file is still in place
    write_whole(card_path(path), text)
    return path


class _InThisProcess:
    """Takes the place of the process that FFCV's writer starts: for one that dies it would wait for ever."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.start = functools.partial(target, *args)


def _check_room(folder: Path, needed: int) -> None:
    # On a full disk FFCV may write less than it was told, and say nothing.
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"'{folder}' has {free / 2**20:.0f} MiB left, {needed / 2**20:.0f} are needed; make room there"
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
        raise InputError(f"images are {images.dtype} {tuple(images.shape)}; wanted uint8 (N, C, H, W), C 1 or 3")
    return np.ascontiguousarray(images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def read_beton(path: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the images and labels of any ``.beton`` with fields ``image`` (raw or JPEG) and ``label``.

    Returns:
        uint8 images ``(N, C, H, W)``, with C = 1 if the file has a card that says so and else 3, and labels ``(N,)``. A
        packed file's images are decoded, and rounded to uint8 again.

    Raises:
        InputError: If there is no such file, it is no such ``.beton``, it is damaged or not the one that its card
            describes, or its images have several sizes.
    """
    images, labels, card = read_stored(path)
    if card is not None and card.packed:
        return unpack(images, card.factor), labels.repeat_interleave(card.parts)
    return images, labels


def read_stored(path: str | Path) -> tuple[torch.Tensor, torch.Tensor, Card | None]:
    """:func:`read_beton` without the decoding: of a packed file the stored images; and the card, if there is one."""
    if not Path(path).is_file():
        raise InputError(f"there is no file '{path}'; wanted a .beton")
    # Before FFCV parses a byte: it believes whatever a file says.
    card = read_card(path) if card_path(path).is_file() else None
    tables = check_beton(Path(path), card)
    images = allocate((len(tables.labels), card.shape[0] if card else 3, tables.height, tables.width))
    rows = images.numpy()
    # Not by FFCV's Loader: for that, it compiles for a second or two, and it would wait for ever on a damaged JPEG.
    content = np.memmap(path, np.uint8, mode="r")
    for i, (start, size, raw) in enumerate(zip(tables.starts, tables.sizes, tables.raw, strict=True)):
        data = content[start : start + size]
        pixels = data.reshape(tables.height, tables.width, 3) if raw else _from_jpeg(data)
        if pixels is None or pixels.shape[:2] != (tables.height, tables.width):
            raise InputError(f"image {i} of '{path}' is damaged; copy or write the file again")
        if raw and rows.shape[1] == 1 and (pixels != pixels[..., :1]).any():
            raise InputError(f"image {i} of '{path}' has colours, and its card says one channel; correct the card")
        rows[i] = pixels.transpose(2, 0, 1)[: rows.shape[1]]
    labels = torch.from_numpy(tables.labels.astype(np.int64))
    return images, labels, card


def _from_jpeg(data: np.ndarray) -> np.ndarray | None:
    try:
        return np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None


@dataclass(frozen=True)
class Tables:
    """What a ``.beton`` says of its N images, checked.

    Args:
        fields: Names of all fields, in the order of the file.
        height, width: Of every image.
        labels: ``(N,)``.
        starts, sizes: Where in the file each image's bytes are, ``(N,)``.
        raw: Whether they are plain pixels, else they are a JPEG, ``(N,)``.
    """

    fields: list[str]
    height: int
    width: int
    labels: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    raw: np.ndarray


def check_beton(path: Path, card: Card | None = None) -> Tables:
    """Parses the tables of a ``.beton`` and makes the checks that FFCV does not make: it follows any pointer.

    Args:
        path: The file.
        card: Its card, to be checked against it. Default: none.

    Raises:
        InputError: If the file is damaged or lacks what is needed, or the card says something else.
    """
    with restored_threads():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.reader import Reader

    try:
        reader = Reader(str(path))
    except Exception as error:  # bytes that are no header can lead to anything
        raise InputError(f"'{path}' is no FFCV file, or a damaged one ({brief(error)}); wanted a .beton") from error
    kinds = {name: type(handler) for name, handler in reader.handlers.items()}
    if kinds.get("image") is not RGBImageField or kinds.get("label") is not IntField:
        found = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        raise InputError(f"'{path}' has fields {found}; wanted image (RGBImageField) and label (IntField)")
    if reader.num_samples == 0:
        raise InputError(f"'{path}' holds no images; wanted at least one")
    image, labels = (reader.metadata[f"f{list(kinds).index(name)}"] for name in ("image", "label"))
    raw, end = image["mode"] == RAW, path.stat().st_size
    # Each image's entry in the table of allocations, which has its size.
    table = np.sort(reader.alloc_table, order="ptr")
    table = table[np.searchsorted(table["ptr"], image["data_ptr"]).clip(max=len(table) - 1)] if len(table) else table
    if not (
        reader.page_size >= MIN_PAGE
        and len(image) == reader.num_samples == len(table)
        and (table["ptr"] == image["data_ptr"]).all()
        and (table["ptr"] <= end).all()
        and (table["size"] <= end - table["ptr"]).all()
        and (table["size"] == 3 * image["height"].astype(np.uint64) * image["width"])[raw].all()
    ):
        raise InputError(f"'{path}' is damaged: its images are not where it says; copy or write it again")
    sizes = {(int(h), int(w)) for h, w in zip(image["height"], image["width"], strict=True)}
    if len(sizes) > 1:
        (low, high) = min(sizes), max(sizes)
        raise InputError(
            f"the images of '{path}' have several sizes, from {low[0]}x{low[1]} to {high[0]}x{high[1]} (H x W); wanted "
            f"one: write it again with resized images"
        )
    height, width = sizes.pop()
    if card and (misfit := find_misfit(card, labels, height, width)):
        raise InputError(
            f"'{path}' and its card do not fit each other: {misfit}; copy both again, or undo the change to the card"
        )
    return Tables(list(kinds), height, width, labels, table["ptr"], table["size"], raw)


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """FFCV sets torch's and numba's thread numbers for the whole process, when imported and by its Loader.

    This sets them back.
    """
    import numba

    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)
