"""Random generators that depend on a key alone, so that any draw can be repeated in any order and after a crash."""

from __future__ import annotations

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
