"""Composer's device names as torch devices."""

from __future__ import annotations

from typing import Literal

import torch
from composer.utils import dist

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
    return torch.device("cuda", dist.get_local_rank())
