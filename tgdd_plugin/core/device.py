"""Composer's device names as torch devices."""

from __future__ import annotations

from typing import Literal

import torch
from composer.utils import get_device

from tgdd_plugin.core.errors import InputError

Device = Literal["cpu", "gpu"]
"""Where networks run, by the names that Composer's Trainer takes."""


def torch_device(device: Device | None) -> torch.device:
    """Returns the torch device of Composer's ``'cpu'``, ``'gpu'`` or ``None``, which is a GPU if there is one.

    Raises:
        InputError: If a GPU is asked for and torch finds none.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError("`device` must be 'cpu' where torch finds no GPU, got 'gpu'. Use 'cpu', or leave it out.")
    return get_device(device).tensor_to_device(torch.empty(0)).device
