"""Data sets, and items of them, in the form that this package works with: uint8 images and class ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from tgdd_plugin.core.batches import IMAGES, LABELS, images_and_labels
from tgdd_plugin.core.errors import InputError, brief, printable, shown
from tgdd_plugin.data.allocation import allocate


def read_items(dataset: Any, *, progress: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads every item of a data set once, see :func:`to_pair`.

    Args:
        dataset: A data set with ``__len__`` and ``__getitem__``.
        progress: Whether to show a progress bar.

    Returns:
        uint8 images ``(N, C, H, W)`` and class ids ``(N,)``.

    Raises:
        InputError: If there is no item, or one cannot be read or used, or sizes differ.
    """
    count = len(dataset)
    if count == 0:
        raise InputError(f"The data set {type(dataset).__name__} is empty. Give at least one (image, label) pair.")
    hidden = None if progress else True  # with None, tqdm draws on a terminal and not into a file
    labels = torch.empty(count, dtype=torch.int64)
    images: torch.Tensor | None = None
    for i in tqdm(range(count), desc="reading images", unit="img", disable=hidden, leave=False):
        try:
            image, labels[i] = to_pair(dataset[i], item_name(dataset, i))  # which may read what was opened only
        except InputError:  # which says itself what is wrong with the item
            raise
        except Exception as error:  # the user's files and code can fail in any way
            raise InputError(
                f"Item {item_name(dataset, i)} of the data set cannot be read ({brief(error)}). Fix or remove it."
            ) from error
        if images is None:
            images = allocate((count, *image.shape))
        if image.shape != images.shape[1:]:
            remedy = "Use, for example, torchvision's Resize and CenterCrop (image_size in a recipe)."
            if len(image) != images.shape[1]:
                remedy = "Convert all to colour, for example by PIL's convert('RGB'), or all to grayscale."
            raise InputError(
                f"All images must have one size, got image {item_name(dataset, i)} of {_size(image)} and the first of "
                f"{_size(images[0])}. {remedy}"
            )
        images[i] = image
    assert images is not None
    return images, labels


def _size(image: torch.Tensor) -> str:
    channels, height, width = image.shape
    return f"{height}x{width} (H x W) of {channels} channel(s)"


def item_name(dataset: Any, position: int) -> str:
    """Returns the position of an item for an error message, with the path of its file where the data set knows it.

    Args:
        dataset: A data set, such as torchvision's ``ImageFolder``, or a ``Subset`` of one.
        position: The position.
    """
    inner, place = dataset, position
    try:
        while not hasattr(inner, "samples") and hasattr(inner, "dataset"):
            inner, place = inner.dataset, int(inner.indices[place])
        path = inner.samples[place][0]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # a data set of another kind
        return str(position)
    return f"{position} ('{printable(str(path))}')" if isinstance(path, (str, Path)) else str(position)


def to_pair(item: Any, position: int | str) -> tuple[torch.Tensor, int]:
    """Converts an item of a data set into a uint8 image of shape (C, H, W), with C 1 or 3, and its class id.

    Args:
        item: The pair (image, label): a PIL image, a uint8 array ``(H, W)`` or ``(H, W, C)``, or a tensor ``(H, W)`` or
            ``(C, H, W)``, uint8 or floating point in [0, 1]; and a whole number. Or a mapping with both, under the
            names that :func:`tgdd_plugin.core.batches.images_and_labels` knows.
        position: Which item it is, for an error message.

    Raises:
        InputError: If the item is anything else.
    """
    if isinstance(item, Mapping):
        keys, item = [str(key) for key in item], images_and_labels(item)
        if item[0] is None or item[1] is None:
            raise InputError(
                f"Item {position} of the data set must have an image under one of the keys {', '.join(IMAGES)} and a "
                f"class id under one of {', '.join(LABELS)}, got {shown(', '.join(keys))}. Rename the keys."
            )
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InputError(
            f"Item {position} of the data set must be a pair (image, label), got a {type(item).__name__}"
            f"{f' of {len(item)}' if isinstance(item, (tuple, list)) else ''}. Return the image and its class id."
        )
    image, label = item
    try:
        number = int(label)
        whole = bool(number == label) and abs(number) < 2**63  # neither a fraction nor text, and a tensor holds it
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InputError(
            f"The label of item {position} must be one integer class id, got {' '.join(repr(label).split())}. Give "
            f"class ids; soft and multiple labels cannot be sorted by class."
        )
    return _to_uint8(image, position), number


def check_depth(image: Image.Image, position: int | str) -> None:
    """Raises an InputError if a PIL image has more than 8 bits a channel, which PIL would clip or cut off.

    PIL makes 8 bits of the channels of a colour image as it loads it: those of the file are known until then.

    Args:
        image: The image.
        position: Which one it is, for the error message.
    """
    modes = [image.mode] if image.mode == "F" or image.mode.startswith("I") else _deep_modes(image)
    if modes:
        raise InputError(
            f"Image {position} must have 8 bits a channel, got a PIL image of mode '{modes[0]}'. Scale it to "
            f"0..255 first: PIL itself would clip the values, or keep the upper 8 bits of them."
        )


def _deep_modes(image: Image.Image) -> list[str]:
    """The modes of 16 bits a channel, such as 'RGB;16B', in which the file of an image has pixels not loaded yet."""
    arguments = [tile[3] for tile in getattr(image, "tile", None) or ()]
    modes = [each[0] if isinstance(each, tuple) and each else each for each in arguments]
    return [mode for mode in modes if isinstance(mode, str) and re.search(";16[BLN]", mode)]


def _to_uint8(image: Any, position: int | str) -> torch.Tensor:
    """Converts an image in any of the accepted forms into uint8 of shape (C, H, W)."""
    if isinstance(image, Image.Image):
        check_depth(image, position)
        if image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise InputError(
                f"Image {position} must be uint8 (H, W) or (H, W, C), got a {image.dtype} array of shape "
                f"{image.shape}. "
                f"Convert it."
            )
        array = np.ascontiguousarray(image[:, :, None] if image.ndim == 2 else image)
        image = torch.from_numpy(array.copy()).permute(2, 0, 1)
    if not isinstance(image, torch.Tensor):
        raise InputError(
            f"Image {position} must be a PIL image, a uint8 array or a tensor, got a {type(image).__name__}. Convert "
            f"it."
        )
    if image.ndim == 2:
        image = image.unsqueeze(0)
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (0 <= low and high <= 1):
            remedy = "Give the data set without Normalize: distillation normalizes by itself."
            if low >= 0:
                remedy = "Divide them by 255, or give them as uint8."
            raise InputError(
                f"Image {position} must have values in [0, 1], got values from {low:.2f} to {high:.2f}. {remedy}"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"Image {position} must be (C, H, W) with 1 or 3 channels, uint8 or floating point in [0, 1], got "
            f"{image.dtype} "
            f"of shape {tuple(image.shape)}. Permute or convert it."
        )
    return image
