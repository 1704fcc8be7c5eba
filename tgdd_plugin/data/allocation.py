"""Room for many images: in memory, or mapped from a temporary file where they are too large for that."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import torch

from tgdd_plugin.core.errors import InputError

MEMORY_LIMIT = 4 * 2**30
"""Bytes of pixels beyond which they are memory-mapped from a temporary file. 4 GiB; CIFAR takes 0.15."""


def allocate(shape: tuple[int, ...]) -> torch.Tensor:
    """Returns an uninitialised uint8 tensor, memory-mapped from a temporary file beyond :data:`MEMORY_LIMIT`."""
    size = int(np.prod(shape))
    if size <= MEMORY_LIMIT:
        return torch.empty(shape, dtype=torch.uint8)
    # The file is unlinked at once: the mapping keeps it alive, and nothing is ever left behind.
    with tempfile.NamedTemporaryFile(prefix="tgdd-pool-") as file:
        # Allocated now, a full disk is an error; at a write into the mapping, it would kill the process.
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise InputError(
                f"{size / 2**30:.1f} GiB of images do not fit in '{tempfile.gettempdir()}' ({error.strerror}). Set "
                f"TMPDIR to a folder with more space, or use fewer or smaller images."
            ) from error
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8).view(shape)
