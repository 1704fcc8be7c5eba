"""Composer's device names as torch devices."""

from __future__ import annotations

import torch
from composer.utils import get_device

from tgdd_plugin.core.errors import InputError


def torch_device(device: str | None) -> torch.device:
    """Composer's ``'cpu'``, ``'gpu'`` or ``None`` (a GPU if there is one) as torch's device.

    Raises:
        InputError: If there is none.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError("device is 'gpu', but torch sees none here; use device 'cpu', or leave it out")
    return get_device(device).tensor_to_device(torch.empty(0)).device
