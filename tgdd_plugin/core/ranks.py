"""The processes of a distributed training, by ``torch.distributed`` alone; without it there is one, rank 0.

All but :func:`rank` are collective: every rank must call them, in the same order. A rank that fails on its way to one
leaves the others waiting, or worse, has its next gradients taken for the answer. So what can fail before a collective
belongs into :func:`on_all_ranks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tgdd_plugin.core.errors import InputError, brief
from tgdd_plugin.core.locks import locked

T = TypeVar("T")


class LostRankError(RuntimeError):
    """A collective failed: another rank has ended or does not answer, so that the training cannot go on either."""


def _running() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no class of its own
        raise LostRankError(f"Another rank has ended or does not answer ({brief(error)}).") from error


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _running() else 0


def add_over_ranks(tensor: torch.Tensor) -> None:
    """Adds up a tensor over all ranks, in place."""
    if _running():
        with _collective():
            dist.all_reduce(tensor)


def share_from_rank_0(objects: list[Any]) -> None:
    """Replaces the entries of a list on every rank by those of rank 0, which must be picklable."""
    if _running():
        with _collective():
            dist.broadcast_object_list(objects)


def gather_over_ranks(value: Any) -> list[Any]:
    """Returns every rank's value, which must be picklable, in the order of the ranks."""
    values = [value]
    if _running():
        values *= dist.get_world_size()
        with _collective():
            dist.all_gather_object(values, value)
    return values


def on_all_ranks(work: Callable[[], T]) -> T:
    """Returns what ``work`` returns on this rank, once it has succeeded on all of them.

    Raises:
        Exception: On every rank, if ``work`` failed on any: its own error where it did, elsewhere an InputError.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # of any kind, since the other ranks wait
        failure = error
    for number, reason in enumerate(gather_over_ranks(failure and brief(failure))):
        if failure is None and reason:
            raise InputError(f"Rank {number} failed ({reason}).")
    if failure is not None:
        raise failure
    return result


@contextmanager
def locked_on_rank_0(path: Path) -> Iterator[None]:
    """Keeps other jobs from working on ``path`` during the block: rank 0 holds the lock for all ranks.

    What several ranks are to find alike on the disk they read within the block, where nobody else changes it.

    Raises:
        InputError: On every rank, if another job works on it. See :func:`tgdd_plugin.core.locks.locked`.
    """
    with ExitStack() as held:
        on_all_ranks(lambda: held.enter_context(locked(path)) if rank() == 0 else None)
        yield
