"""Device names as torch devices: Composer's two, and any of torch's."""

from __future__ import annotations

from typing import Literal

import torch

from tgdd_plugin.core.errors import InputError

Device = Literal["cpu", "gpu"]
"""Where networks run, by the names that Composer's Trainer takes."""


def torch_device(device: Device | None) -> torch.device:
    """Returns the torch device of Composer's ``'cpu'``, ``'gpu'`` or ``None``, which is a GPU if there is one.

    Raises:
        InputError: If a GPU is asked for and torch finds none, or for another name.
    """
    if device not in (None, "cpu", "gpu"):
        raise InputError(f"`device` must be 'cpu', 'gpu', or None for a GPU if there is one, got {device!r}. Name one.")
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError("`device` must be 'cpu' where torch finds no GPU, got 'gpu'. Use 'cpu', or leave it out.")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    from composer.utils import dist  # which takes seconds

    return torch.device("cuda", dist.get_local_rank())


def any_device(device: torch.device | str) -> torch.device:
    """Returns a torch device, or that of Composer's ``'gpu'``.

    Raises:
        InputError: If there is none of this name, or torch finds no GPU.
    """
    if device == "gpu":
        return torch_device("gpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"`device` must be 'cpu', 'gpu' or a torch device, got {device!r}. Name one.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"`device` must be 'cpu' where torch finds no GPU, got {device!r}. Use 'cpu'.")
    return found
