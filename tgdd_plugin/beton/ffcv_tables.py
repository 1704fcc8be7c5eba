"""The tables of a ``.beton``, as FFCV parses them, and the checks that it does not make."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tgdd_plugin.beton.card import Card, find_mismatch
from tgdd_plugin.beton.factors import MOST_PACKED
from tgdd_plugin.beton.ffcv_threads import restored_threads
from tgdd_plugin.core.bounded_reading import open_regular
from tgdd_plugin.core.errors import InputError, brief

MIN_PAGE = 2**21
"""FFCV's smallest page. A file has at least one page of samples and is padded to whole ones: 4 MiB in all."""


RAW = 1
"""FFCV's mode of an image stored as plain pixels; 0 is JPEG."""


MOST_EXPANSION = MOST_PACKED**2
"""The most bytes of decoded images for each stored byte; JPEGs of photographs have 10 to 30, packed images the
square of their factor. To this, :data:`ALWAYS` is added."""


ALWAYS = 2**26
"""The bytes of decoded images that any file may have."""


@dataclass(frozen=True)
class Tables:
    """What a ``.beton`` says about its N images, checked.

    Args:
        fields: The names of all fields, in the order of the file.
        height, width: The size of every image.
        labels: The label of each image, ``(N,)``.
        starts, sizes: Where in the file each image's bytes are, ``(N,)``.
        raw: Whether an image is stored as plain pixels; otherwise it is a JPEG, ``(N,)``.
    """

    fields: list[str]
    height: int
    width: int
    labels: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    raw: np.ndarray


def check_header(path: Path) -> None:
    """Compares what the header of a ``.beton`` says with the size of the file, before FFCV allocates that much.

    Raises:
        InputError: If it cannot be, or the file is not a regular one.
    """
    with restored_threads():
        from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType

    with open_regular(path) as file:
        content = file.read(HeaderType.itemsize)
        end = os.fstat(file.fileno()).st_size
    if len(content) == HeaderType.itemsize:
        header = np.frombuffer(content, HeaderType)[0]
        tables = HeaderType.itemsize + int(header["num_fields"]) * FieldDescType.itemsize
        tables += int(header["num_samples"]) * ALLOC_TABLE_TYPE.itemsize  # at least an image each
        if tables > end or int(header["page_size"]) > end or int(header["alloc_table_ptr"]) > end:
            raise InputError(
                f"The file '{path}' is not an FFCV file, or is damaged (its header says more than it holds). Name a "
                f".beton."
            )


def check_beton(path: Path, card: Card | None = None) -> Tables:
    """Parses the tables of a ``.beton`` and makes the checks that FFCV does not make: it follows any pointer.

    Args:
        path: The file.
        card: Its card, to be checked against the file. Default: ``None``, it has none.

    Raises:
        InputError: If the file is damaged or lacks what is needed, or the card says something else.
    """
    with restored_threads():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.reader import Reader

    check_header(path)
    try:
        reader = Reader(str(path))
    except Exception as error:  # bytes that are not a header can lead to anything
        raise InputError(
            f"The file '{path}' is not an FFCV file, or is damaged ({brief(error)}). Name a .beton."
        ) from error
    kinds = {name: type(handler) for name, handler in reader.handlers.items()}
    if kinds.get("image") is not RGBImageField or kinds.get("label") is not IntField:
        found = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        raise InputError(
            f"The file '{path}' must have the fields image (RGBImageField) and label (IntField), got {found}. Write it "
            f"with these."
        )
    if reader.num_samples == 0:
        raise InputError(f"The file '{path}' holds no images. Write it again with at least one.")
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
        raise InputError(f"The file '{path}' is damaged: its images are not where it says. Copy or write it again.")
    sizes = {(int(h), int(w)) for h, w in zip(image["height"], image["width"], strict=True)}
    if len(sizes) > 1:
        (low, high) = min(sizes), max(sizes)
        raise InputError(
            f"The images of '{path}' must be of one size, got several sizes, from {low[0]}x{low[1]} to "
            f"{high[0]}x{high[1]} (H x W). Write it again with resized images."
        )
    height, width = sizes.pop()
    # Bytes that several samples name count once.
    stored = int(table["size"][np.unique(table["ptr"], return_index=True)[1]].sum())
    count = len(image) * (card.parts if card else 1)
    if not height * width or 3 * height * width * count > MOST_EXPANSION * stored + ALWAYS:
        raise InputError(
            f"The file '{path}' is damaged: {stored} bytes cannot hold {count} images of {height}x{width}. Copy or "
            f"write it again."
        )
    if card and (mismatch := find_mismatch(card, labels, height, width)):
        raise InputError(
            f"The file '{path}' and its card do not fit each other: {mismatch}. Copy both again, or undo the change to "
            f"the card."
        )
    return Tables(list(kinds), height, width, labels, table["ptr"], table["size"], raw)
