"""Reading the ``.pt`` files of distilled sets that other code wrote, as tensors and nothing else.

``torch.load(weights_only=True)`` builds tensors and plain containers; whatever else a file asks for is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.beton.pt_checks import NotPlainError, check_memory, is_zip
from tgdd_plugin.core.errors import InputError, shown

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
"""The types of class ids; narrower ones can hardly be computed with."""


class _Unread:
    """Stands in for the numpy numbers (accuracies) in DC's, DSA's and DM's files, which weights_only refuses."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# By the names that numpy 1 and 2 give them.
_NUMBERS: list[Any] = [
    type(name, (_Unread,), {"__module__": module})
    for module, name in (("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("numpy", "dtype"))
]


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"There is no file '{path}'. Name a .pt that torch.save wrote.")
    kept = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_NUMBERS)
    try:
        # Mapped, so that nothing is read beyond the file, whatever it says of its size; older files cannot be.
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip(path))
    except InputError:
        raise
    except Exception as error:  # bytes that are not a .pt can lead to anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code or isinstance(error, NotPlainError):
            raise InputError(
                f"The file '{path}' holds a {shown(code[1] if code else error)}, and reading such an object could run "
                f"foreign code. Save tensors alone: where the file comes from, torch.save([images, labels], ...)."
            ) from None
        # torch's own message would advise reading it without weights_only.
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise InputError(
            f"The file '{path}' is not a .pt that torch.save wrote, or is damaged ({shown(reason, 120)}). Copy "
            f"it again."
        ) from None
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(kept)
    check_memory(content, path)
    return content


def read_pair(paths: list[Path], experiment: int, named: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Reads images and labels as they are stored.

    Args:
        paths: One file, or two: images, labels.
        experiment: Which of several sets in the file; negative numbers count from the last.
        named: The files in words, to be named in an error.

    Returns:
        The images, the labels, and where they come from, for a card's ``method``.

    Raises:
        InputError: If the files do not hold such tensors.
    """
    if len(paths) not in (1, 2):
        raise InputError(
            f"`source` must be one .pt with images and labels, or two: images, labels, got {len(paths)} files. Give "
            f"one or two."
        )
    origin: dict[str, Any] = {"name": "imported", "files": [path.name for path in paths]}
    content: Any = [_load(path) for path in paths]
    if len(paths) == 1:
        content = content[0]
        if isinstance(content, dict):
            if "data" not in content:
                keys = ", ".join(shown(key, 40) for key in list(content)[:8])
                raise InputError(
                    f"The file {named} must have the key data, or be [images, labels], got a dict of "
                    f"{keys or 'nothing'}. Save it again in one of these forms."
                )
            content = content["data"]
        if isinstance(content, list | tuple) and content and all(isinstance(item, list | tuple) for item in content):
            if not -len(content) <= experiment < len(content):
                raise InputError(
                    f"`experiment` must be from 0 to {len(content) - 1} for {named}, got {experiment}. Count from 0, "
                    f"or from the last by -1, -2, ..."
                )
            origin["experiment"] = f"{experiment % len(content)} of {len(content)}"
            content = content[experiment]
    if not isinstance(content, list | tuple) or len(content) != 2 or not all(map(_is_plain, content)):
        alone = isinstance(content, torch.Tensor)
        remedy = "Give the file of its labels, too" if alone else "Save them by torch.save([images, labels], ...)"
        held = ", ".join(type(item).__name__ for item in (content if isinstance(content, list | tuple) else [content]))
        raise InputError(
            f"The file {named} must hold two dense tensors, images and labels, got {held or 'nothing':.60}. {remedy}."
        )
    return content[0].detach(), content[1].detach(), origin


def _is_plain(tensor: Any) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )


@dataclass(frozen=True)
class Labels:
    """The labels of N images.

    Args:
        ids: Class ids, ``(N,)``.
        soft: Probabilities of the classes, ``(N, K)``; ``None`` if there are only class ids.
        num_classes: K.
        note: What a card's ``method`` is to say of them.
    """

    ids: torch.Tensor
    soft: torch.Tensor | None
    num_classes: int
    note: dict[str, str] = field(default_factory=dict)


def read_labels(labels: torch.Tensor, count: int, num_classes: int | None, named: str) -> Labels:
    """Reads class ids ``(N,)``, or one-hot labels, probabilities or logits ``(N, K)``.

    Args:
        labels: The labels as stored.
        count: N.
        num_classes: K, if known.
        named: The files in words, to be named in an error.

    Raises:
        InputError: If they are not such labels.
    """
    shape, soft, note = tuple(labels.shape), None, {}
    if labels.ndim == 2 and shape[1] > 1 and shape == (count, num_classes or shape[1]) and not labels.is_complex():
        num_classes, shares = shape[1], labels.float()
        if not shares.isfinite().all():
            raise InputError(
                f"The labels of {named} must be finite, got values that are not. Fix them, or give class ids."
            )
        ones = (shares.sum(1) - 1).abs() < 1e-3
        if not (((shares == 0) | (shares == 1)).all() and ones.all()):  # one-hot labels say no more than their class
            likely = bool((shares >= 0).all() and ones.all())
            soft = shares if likely else shares.softmax(1)
            note = {"soft_labels": "probabilities" if likely else "softmax of logits"}
        labels = shares.argmax(1)
    elif shape != (count,) or labels.dtype not in WHOLE:
        raise InputError(
            f"The labels of {named} must be class ids (N,), or (N, {num_classes or 'K'}), for {count} images, got "
            f"{labels.dtype} of shape {shape}. Save them again in one of these forms."
        )
    labels = labels.long()
    low, high = int(labels.min()), int(labels.max())
    # Without names, numbers beyond that of the images are not class ids.
    if low < 0 or high >= (num_classes or count):
        raise InputError(
            f"The labels of {named} must be in 0..{(num_classes or count) - 1}, got {low} to {high}. Correct them, or "
            f"the class names."
        )
    return Labels(labels, soft, num_classes or high + 1, note)
