"""Random generators that depend on a key alone, so that any draw can be repeated in any order and after a crash."""

from __future__ import annotations

import random
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
    """A context that leaves the global random streams of torch, NumPy and Python as they were before it.

    Of torch as ``torch.random.fork_rng()`` on the CPU and all GPUs, which warns where there is more than one GPU unless
    they are named. A user's network or data set may draw from the other two, and Composer's ``Trainer`` seeds them all.
    Within, torch's inference mode is off: what is built and trained there needs gradients.

    Args:
        seed: What the streams start from within. Default: ``None``, they go on from where they are.
    """
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.inference_mode(False):
            if seed is not None:
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)  # all that it takes
                random.seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
