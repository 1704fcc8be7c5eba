"""The processes of a distributed training, by ``torch.distributed`` alone; without it there is one, rank 0."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _running() else 0


def add_over_ranks(tensor: torch.Tensor) -> None:
    """Adds up a tensor over all ranks, in place. Collective."""
    if _running():
        dist.all_reduce(tensor)


def share_from_rank_0(objects: list[Any]) -> None:
    """Replaces the entries of a list on every rank by those of rank 0, which must be picklable. Collective."""
    if _running():
        dist.broadcast_object_list(objects)
