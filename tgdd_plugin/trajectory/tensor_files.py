"""The tensor files of a run, its stages and its exemplars: how they are opened, and what exemplars must be.

Importing this module does not import torch, so that ``tgdd show`` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from tgdd_plugin.core.bounded_reading import check_tensor_file
from tgdd_plugin.core.errors import InputError, shown
from tgdd_plugin.trajectory.checking import was_dropped
from tgdd_plugin.trajectory.manifest import EXEMPLARS

if TYPE_CHECKING:
    import torch


def read_exemplars(folder: Path, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the real images in a run's folder.

    Returns:
        uint8 images ``(M, C, H, W)``, C 1 or 3, and int64 labels ``(M,)`` in 0..K-1.

    Raises:
        InputError: If the file cannot be read or holds anything else.
    """
    import torch  # here, so that a trajectory can be opened and shown without it

    path = folder / EXEMPLARS
    content = load_tensors("exemplars", path)
    images, labels = content.get("images"), content.get("labels")
    if (
        images is None
        or labels is None
        or not (images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3) and images.numel())
        or not (labels.dtype == torch.int64 and labels.shape == images.shape[:1])
        or not (0 <= int(labels.min()) and int(labels.max()) < num_classes)
    ):
        held = shown(", ".join(f"{name} {t.dtype} {tuple(t.shape)}" for name, t in content.items()), 300)
        raise InputError(
            f"The exemplars file '{path}' must have images uint8 (M, C, H, W) with 1 or 3 channels, and labels int64 "
            f"(M,) below {num_classes}, got {held or 'nothing'}. Copy the folder again, or record the run again."
        )
    return images, labels


def are_class_means(found: list[torch.Tensor], classes: int) -> bool:
    """Returns whether tensors are means ``(K, D)`` and counts ``(K,)``, finite float32, no count below 0."""
    import torch  # here, so that a trajectory can be opened and shown without it

    return (
        len(found) == 2
        and found[0].ndim == 2
        and len(found[0]) == classes
        and found[1].shape == (classes,)
        and all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in found)
        and not found[1].min() < 0
    )


def load_tensors(what: str, path: Path) -> dict[str, torch.Tensor]:
    """Loads all tensors of a file by name, on the CPU."""
    with opened(what, path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@contextmanager
def opened(what: str, path: Path, framework: str) -> Iterator[Any]:
    """Opens a safetensors file by a ``framework``, ``'pt'`` or ``'numpy'``, which is imported only then."""
    try:
        check_tensor_file(path)
        with safetensors.safe_open(path, framework=framework) as file:
            yield file
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # the second is torch's
        if not path.exists() and what == "stage" and was_dropped(path):
            raise InputError(
                f"The stage file '{path}' is gone since the folder was opened: its run is being recorded, and thinned, "
                f"at the same time. Open the folder again, best when the run has ended."
            ) from None
        raise InputError(
            f"The {what} file '{path}' cannot be read: {shown(error, 300)}. Copy the folder again or record the run "
            f"again."
        ) from error
