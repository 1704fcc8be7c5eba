"""Random generators that depend on a key alone, so that any draw can be repeated in any order and after a crash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def keyed_generator(*key: int) -> torch.Generator:
    """Returns a CPU generator that depends only on ``key``: non-negative integers such as (seed, step, rank).

    Example:
        >>> torch.equal(torch.rand(2, generator=keyed_generator(0, 7)), torch.rand(2, generator=keyed_generator(0, 7)))
        True
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@contextmanager
def forked_streams(seed: int | None = None) -> Iterator[None]:
    """A context that leaves torch's global random streams, the CPU's and all GPUs', as they were before it.

    As ``torch.random.fork_rng()``, which warns in every process that sees more than one GPU unless they are named.

    Args:
        seed: What the streams start from within. Default: ``None``, they go on from where they are.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield
