"""How much memory of a GPU there is to take."""

from __future__ import annotations

import torch


def free_gpu_memory(device: torch.device) -> int:
    """Returns the bytes of a GPU that this process can still take: those that are free, and those that it caches."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
