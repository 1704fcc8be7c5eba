"""Time and memory: what work takes of them, measured and in words, and what there is of a GPU's to take."""

from __future__ import annotations

import resource
import sys
import time

import torch


def now(device: torch.device) -> float:
    """Seconds by the clock, once a GPU has done what it was given so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory() -> int:
    """The most bytes of memory that this process has held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def free_gpu_memory(device: torch.device) -> int:
    """Returns the bytes of a GPU that this process can still take: those that are free, and those that it caches."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def in_words(seconds: float, digits: int = 0) -> str:
    """A duration for people.

    Args:
        seconds: The duration.
        digits: Decimals of seconds and minutes. Default: ``0``.
    """
    if seconds < 100:
        return f"{seconds:.{digits}f} s"
    return f"{seconds / 60:.{digits}f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
