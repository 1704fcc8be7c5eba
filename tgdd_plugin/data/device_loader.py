"""A loader of batches from images that stay on a device."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from composer.utils import dist

from tgdd_plugin.core.errors import InputError, check_whole_number
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization

NORMALIZED_LIMIT = 2**27
"""Bytes up to which a set is also kept as normalized float32: 128 MiB, 10,000 images of CIFAR-10's size."""


class DeviceLoader:
    """Batches of (normalized images, labels) from uint8 images that stay where they are, in a new order each epoch.

    The last batch may be smaller, and a set smaller than ``batch_size`` is one batch. Where a single image would be
    left for the last one, which batch normalization may refuse, it gets one of the batch before, unless that has two.
    With several ranks, each gets a share of every epoch; all shares have the same size, so a few images may be used
    twice.

    Args:
        images: uint8 images ``(N, C, H, W)``.
        labels: Class ids ``(N,)``, or soft labels ``(N, K)``.
        normalization: What the images are normalized with.
        batch_size: The size of a batch on each rank.
        shuffle: Whether the order is random. Default: ``True``.
        seed: The seed of the order. Default: ``0``.
        device: The device of the batches. Default: that of ``images``.
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
        check_batches(batch_size, seed)
        self.device = torch.device(device) if device is not None else images.device
        self.images = images
        self.labels = labels.to(self.device)
        self.normalization = normalization
        self.batch_size = min(batch_size, len(images))
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        # A compact set is normalized once, not again in every epoch.
        small = 4 * images.numel() <= NORMALIZED_LIMIT
        self._normalized = normalization(images.to(self.device)) if small else None

    def __len__(self) -> int:
        """The number of batches in an epoch on this rank."""
        share = -(-len(self.images) // dist.get_world_size())
        return -(-share // self.batch_size)

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.images.shape[1:])
        order = "shuffled" if self.shuffle else "in order"
        what = f"{len(self.images)} images of {shape} in {len(self)} batches of {self.batch_size}, {order}"
        return f"DeviceLoader({what}, on {self.device})"

    def fingerprint(self) -> str:
        """Returns the SHA-256 of what its batches depend on, with up to 4,096 of the images."""
        pool = ImagePool(self.images, torch.zeros(len(self.images)))
        about = [pool.fingerprint(), self.normalization.mean, self.normalization.std, self.batch_size, self.shuffle]
        digest = hashlib.sha256(json.dumps([*about, self.seed]).encode())
        digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()

    def batches_of(self, passes: int) -> int:
        """How many batches, on this rank, hold at least so many images on all ranks together.

        Raises:
            InputError: If they are fewer than one batch.
        """
        if passes < self.batch_size:
            raise InputError(
                f"`passes` must be at least one batch of {self.batch_size} images, got {passes}. Give more, or a "
                f"smaller batch_size."
            )
        whole, rest = divmod(passes, len(self.images))
        return whole * len(self) + -(-rest // (self.batch_size * dist.get_world_size()))

    def batch_sizes(self) -> dict[int, int]:
        """How many batches of an epoch on this rank have each size."""
        return dict(Counter(self._sizes()))

    def _sizes(self) -> list[int]:
        """The sizes of the batches of an epoch on this rank."""
        whole, rest = divmod(-(-len(self.images) // dist.get_world_size()), self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * bool(rest)
        if rest == 1 and whole and self.batch_size > 2:
            sizes[-2:] = [self.batch_size - 1, 2]
        return sizes

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.arange(len(self.images))
        if self.shuffle:
            state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(int(state)))
            self.epoch += 1
        if (ranks := dist.get_world_size()) > 1:
            # With fewer batches on one rank, the others would wait for ever.
            share = torch.arange(dist.get_global_rank(), -(-len(order) // ranks) * ranks, ranks)
            order = order[share % len(order)]
        for index in order.split(self._sizes()):
            there = index.to(self.device)
            if self._normalized is not None:
                images = self._normalized.index_select(0, there)
            else:
                images = self.images[index.to(self.images.device)].to(self.device, non_blocking=True)
                images = self.normalization(images)
            yield images, self.labels.index_select(0, there)


def check_batches(batch_size: int, seed: int) -> None:
    check_whole_number("batch_size", batch_size, 1)
    check_whole_number("seed", seed, 0)
