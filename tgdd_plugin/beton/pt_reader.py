"""Reading the ``.pt`` files of distilled sets that other code wrote, as tensors and nothing else.

``torch.load(weights_only=True)`` builds tensors and plain containers; whatever else a file asks for is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.core.errors import InputError


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
        raise InputError(f"there is no file '{path}'; wanted a .pt that torch.save wrote")
    kept = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_NUMBERS)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no .pt can lead to anything
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"'{path}' holds a {code[1]}, and reading such a thing could run foreign code; wanted tensors alone: "
                f"where the file comes from, torch.save([images, labels], ...)"
            ) from None
        # torch's own message would advise to read it without weights_only.
        raise InputError(
            f"'{path}' is no .pt that torch.save wrote, or a damaged one ({type(error).__name__}); copy it again"
        ) from None
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(kept)


def read_pair(paths: list[Path], experiment: int, named: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Images and labels as they are stored, and where they come from."""
    if len(paths) not in (1, 2):
        raise InputError(f"{len(paths)} files came; wanted one .pt with images and labels, or two: images, labels")
    origin: dict[str, Any] = {"name": "imported", "files": [path.name for path in paths]}
    content: Any = [_load(path) for path in paths]
    if len(paths) == 1:
        content = content[0]
        if isinstance(content, dict):
            if "data" not in content:
                keys = ", ".join(str(key) for key in list(content)[:8])
                raise InputError(f"{named} is a dict of {keys or 'nothing'}; wanted the key data, or [images, labels]")
            content = content["data"]
        if isinstance(content, list | tuple) and content and all(isinstance(item, list | tuple) for item in content):
            if not -len(content) <= experiment < len(content):
                raise InputError(f"experiment is {experiment}, and {named} has {len(content)}; count from 0")
            origin["experiment"] = f"{experiment % len(content)} of {len(content)}"
            content = content[experiment]
    if not isinstance(content, list | tuple) or len(content) != 2 or not all(map(_is_plain, content)):
        more = ": give the file of its labels, too" if isinstance(content, torch.Tensor) else ""
        held = ", ".join(type(item).__name__ for item in (content if isinstance(content, list | tuple) else [content]))
        raise InputError(f"{named} holds {held or 'nothing':.60}; wanted two dense tensors, images and labels{more}")
    return content[0].detach(), content[1].detach(), origin


def _is_plain(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"


def read_labels(
    labels: torch.Tensor, count: int, num_classes: int | None, named: str
) -> tuple[torch.Tensor, torch.Tensor | None, int, dict[str, str]]:
    """Class ids ``(N,)``, probabilities ``(N, K)`` or none, K, and what there is to note about them."""
    shape, soft, note = tuple(labels.shape), None, {}
    if labels.ndim == 2 and shape[1] > 1 and shape == (count, num_classes or shape[1]) and not labels.is_complex():
        num_classes, shares = shape[1], labels.float()
        if not shares.isfinite().all():
            raise InputError(f"labels of {named} are not finite; mend them, or give class ids")
        ones = (shares.sum(1) - 1).abs() < 1e-3
        if not (((shares == 0) | (shares == 1)).all() and ones.all()):  # one-hot labels say no more than their class
            likely = bool((shares >= 0).all() and ones.all())
            soft = shares if likely else shares.softmax(1)
            note = {"soft_labels": "probabilities" if likely else "softmax of logits"}
        labels = shares.argmax(1)
    elif shape != (count,) or labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise InputError(
            f"{count} images came with {labels.dtype} labels of shape {shape} in {named}; wanted class ids (N,), or "
            f"(N, {num_classes or 'K'})"
        )
    low, high = int(labels.min()), int(labels.max())
    # Without names, more classes than images are no classes.
    if low < 0 or high >= (num_classes or count):
        raise InputError(
            f"labels of {named} run from {low} to {high}; wanted 0..{(num_classes or count) - 1}: correct them, or the "
            f"class names"
        )
    return labels.long(), soft, num_classes or high + 1, note
