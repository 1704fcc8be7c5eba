"""Loaders of compact sets: the whole set resident on a device, or FFCV's. Never an empty epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.utils import dist

from tgdd_plugin.beton import check_beton, read_beton, restored_threads
from tgdd_plugin.card import Card, read_card
from tgdd_plugin.errors import InputError
from tgdd_plugin.images import normalise

NORMALISED = 2**27
"""Bytes up to which a set is kept as normalised float32 as well: 128 MiB, 10,000 images of CIFAR-10's size."""


class DeviceLoader:
    """Batches of (normalised images, labels) from uint8 images that stay where they are, in a new order each epoch.

    The last batch may be smaller, and a set smaller than ``batch_size`` is one batch. Under several ranks, each
    gets its share of every epoch; all shares are equally large, for which a few images may come twice.

    Args:
        images: uint8, ``(N, C, H, W)``.
        labels: ``(N,)``.
        mean, std: Per-channel normalisation for pixels in [0, 1].
        batch_size: On each rank.
        shuffle: Default: ``True``.
        seed: Of the order. Default: ``0``.
        device: Where batches are wanted. Default: where ``images`` are.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        mean: Sequence[float],
        std: Sequence[float],
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
        self.mean, self.std = list(mean), list(std)
        self.batch_size = min(batch_size, len(images))
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        # A compact set is normalised once, not at every epoch anew.
        small = 4 * images.numel() <= NORMALISED
        self._normalised = normalise(images.to(self.device), mean, std) if small else None

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
                images = normalise(images, self.mean, self.std)
            yield images, self.labels.index_select(0, there)


def beton_loader(
    path: str | Path,
    batch_size: int = 64,
    *,
    backend: str = "device",
    shuffle: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Any:
    """Batches of (normalised images, labels) from a ``.beton`` and its card, for any training loop or Trainer.

    Args:
        path: The file; its card must lie beside it.
        batch_size: Clamped to the number of images: no epoch is ever empty. Default: ``64``.
        backend: ``'device'`` keeps the whole set on ``device``: for compact sets the faster by far. ``'ffcv'`` is
            ``ffcv.Loader`` with its usual pipeline, for large files; grey images keep three channels there, and
            batches lie in buffers that FFCV uses again, so copy what you keep. It cannot decode a packed file.
        shuffle: Default: ``True``.
        seed: Of the order. Default: ``0``.
        device: Where batches are wanted, and for ``'device'`` where the set is kept. Default: ``'cpu'``.

    Returns:
        An iterable with ``len()``; float32 images ``(B, C, H, W)`` and int64 labels ``(B,)``.

    Raises:
        InputError: If the file or its card cannot be used.
    """
    card = read_card(path)
    if backend == "device":
        images, labels = read_beton(path)
        return DeviceLoader(
            images.to(device), labels, card.mean, card.std, batch_size=batch_size, shuffle=shuffle, seed=seed
        )
    if backend != "ffcv":
        raise InputError(f"backend is '{backend}'; wanted 'device' or 'ffcv'")
    if card.packed:
        raise InputError(
            f"'{path}' is packed, and FFCV cannot decode it; take backend='device', or write it unpacked "
            f"(tgdd_plugin.beton says how)"
        )
    _check(batch_size, seed)
    return _FFCVLoader(Path(path), card, batch_size, shuffle, seed, torch.device(device))


class _FFCVLoader:
    """``ffcv.Loader`` that leaves the process' thread numbers alone, and no thread behind after an early stop."""

    def __init__(self, path: Path, card: Card, batch_size: int, shuffle: bool, seed: int, device: torch.device) -> None:
        fields = check_beton(path, card).fields
        self.swapped = fields.index("label") < fields.index("image")
        channels = 3 // card.shape[0]
        self.mean, self.std = card.mean * channels, card.std * channels
        ranks = dist.get_world_size()
        self.batch_size = min(batch_size, -(-card.images // ranks))  # Composer wants to know it
        with restored_threads():
            from ffcv.fields.basics import IntDecoder
            from ffcv.fields.rgb_image import SimpleRGBImageDecoder
            from ffcv.loader import Loader, OrderOption
            from ffcv.transforms import NormalizeImage, Squeeze, ToDevice, ToTensor, ToTorchImage

            scale = [np.array(values) * 255 for values in (self.mean, self.std)]
            to_device = [ToDevice(device, non_blocking=True)]
            self.loader = Loader(
                str(path),
                batch_size=self.batch_size,
                num_workers=1,
                order=OrderOption.RANDOM if shuffle else OrderOption.SEQUENTIAL,
                os_cache=True,
                distributed=ranks > 1,
                drop_last=False,
                seed=seed,
                pipelines={
                    **dict.fromkeys(fields),
                    "image": [
                        SimpleRGBImageDecoder(),
                        NormalizeImage(*scale, np.float32),
                        ToTensor(),
                        ToTorchImage(),
                        *to_device,
                    ],
                    "label": [IntDecoder(), ToTensor(), Squeeze(1), *to_device],
                },
            )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Sequence[torch.Tensor]]:
        with restored_threads():
            batches = iter(self.loader)
            # FFCV's thread sets the numbers once more, before its first batch.
            batch = next(batches, None)
        try:
            while batch is not None:
                yield batch[::-1] if self.swapped else batch  # they come in the order of the file
                batch = next(batches, None)
        finally:
            batches.close()


def _check(batch_size: int, seed: int) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; wanted at least {least}")
