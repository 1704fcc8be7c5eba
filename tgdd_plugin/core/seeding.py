"""Randomness that depends on a key alone: whatever is drawn can be drawn again, in any order and after any crash."""

from __future__ import annotations

import numpy as np
import torch


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone, such as (seed, step, rank); numbers from 0 on."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
