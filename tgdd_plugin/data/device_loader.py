"""Batches from images that stay on a device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from composer.utils import dist

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.normalization import Normalization

NORMALISED = 2**27
"""Bytes up to which a set is kept as normalised float32 as well: 128 MiB, 10,000 images of CIFAR-10's size."""


class DeviceLoader:
    """Batches of (normalised images, labels) from uint8 images that stay where they are, in a new order each epoch.

    The last batch may be smaller, and a set smaller than ``batch_size`` is one batch. Under several ranks, each
    gets its share of every epoch; all shares are equally large, for which a few images may come twice.

    Args:
        images: uint8, ``(N, C, H, W)``.
        labels: ``(N,)``.
        normalization: What the images are normalized with.
        batch_size: On each rank.
        shuffle: Default: ``True``.
        seed: Of the order. Default: ``0``.
        device: Where batches are wanted. Default: where ``images`` are.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        normalization: Normalization,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        _check(batch_size, seed)
        self.device = torch.device(device) if device is not None else images.device
        self.images = images
        self.labels = labels.to(self.device)
        self.normalization = normalization
        self.batch_size = min(batch_size, len(images))
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        # A compact set is normalised once, not at every epoch anew.
        small = 4 * images.numel() <= NORMALISED
        self._normalised = normalization(images.to(self.device)) if small else None

    def __len__(self) -> int:
        """Batches in an epoch on this rank."""
        share = -(-len(self.images) // dist.get_world_size())
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.arange(len(self.images))
        if self.shuffle:
            state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(int(state)))
            self.epoch += 1
        if (ranks := dist.get_world_size()) > 1:
            # A rank with fewer batches than the others would leave them waiting for ever.
            share = torch.arange(dist.get_global_rank(), -(-len(order) // ranks) * ranks, ranks)
            order = order[share % len(order)]
        for index in order.split(self.batch_size):
            there = index.to(self.device)
            if self._normalised is not None:
                images = self._normalised.index_select(0, there)
            else:
                images = self.images[index.to(self.images.device)].to(self.device, non_blocking=True)
                images = self.normalization(images)
            yield images, self.labels.index_select(0, there)


def _check(batch_size: int, seed: int) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; wanted at least {least}")
