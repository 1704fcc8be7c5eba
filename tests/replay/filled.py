"""A memory with images in it, which several test files mix into batches."""

from __future__ import annotations

from typing import Any

import torch

from tests.common import CLASSES, seeded
from tgdd_plugin.replay.memory import ReplayMemory


def memory(per_class: int = 3, shape: tuple[int, int, int] = (1, 8, 8), **options: Any) -> ReplayMemory:
    """A memory of random images, always the same ones."""
    made = ReplayMemory(**{"images_per_class": per_class, "mean": [0.0] * shape[0], "std": [1.0] * shape[0], **options})
    images = torch.randint(256, (CLASSES * per_class, *shape), generator=seeded(1)).to(torch.uint8)
    made.add((images, torch.arange(CLASSES * per_class) % CLASSES))
    return made
