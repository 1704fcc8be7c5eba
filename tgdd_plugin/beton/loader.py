"""Loaders of a ``.beton``: the whole set resident on a device, or FFCV's. No epoch is ever empty."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from composer.utils import dist

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.ffcv_tables import check_beton
from tgdd_plugin.beton.ffcv_threads import restored_threads
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.device import any_device
from tgdd_plugin.core.errors import InputError, check_seed, check_whole_number, printable
from tgdd_plugin.data.device_loader import DeviceLoader, check_batches
from tgdd_plugin.data.mixing import mixed_images
from tgdd_plugin.data.normalization import Normalization


def beton_loader(
    path: str | os.PathLike[str],
    batch_size: int = 64,
    *,
    backend: Literal["device", "ffcv"] = "device",
    shuffle: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Any:
    """Returns batches of (normalized images, labels) from a ``.beton`` and its card, for any training loop or Trainer.

    Args:
        path: The file; its card must lie beside it.
        batch_size: Images in a batch, clamped to the number of images: no epoch is ever empty. Default: ``64``.
        backend: ``'device'`` keeps the whole set on ``device``, which is faster by far for compact sets. ``'ffcv'`` is
            ``ffcv.Loader`` with its usual pipeline, for large files; batches lie in buffers that FFCV uses again, so
            copy what you keep. It cannot decode a packed file.
        shuffle: Whether to shuffle in each epoch. Default: ``True``.
        seed: The seed of the order. Default: ``0``.
        device: The torch device of the batches, and for ``'device'`` of the whole set, or ``'gpu'`` as elsewhere in
            this package. Default: ``'cpu'``.

    Returns:
        An iterable with ``len()``; float32 images ``(B, C, H, W)`` and int64 labels ``(B,)``.

    Raises:
        InputError: If the file, its card or the device cannot be used.
    """
    path, on = Path(path), any_device(device)
    card = read_card(path)
    if backend == "device":
        images, labels = read_beton(path)
        return DeviceLoader(
            images.to(on), labels, card.normalization, batch_size=batch_size, shuffle=shuffle, seed=seed
        )
    if backend != "ffcv":
        raise InputError(f"`backend` must be 'device' or 'ffcv', got '{backend}'. Choose one of these.")
    if card.packed:
        raise InputError(
            f"`backend` must be 'device' for '{path}', which is packed, and which FFCV cannot decode, got 'ffcv'. "
            f"Choose backend='device', or write the file unpacked (tgdd_plugin.beton.format says how)."
        )
    check_batches(batch_size, seed)
    return _FFCVLoader(path, card, batch_size, shuffle, seed, on)


def mixed_loader(
    path: str | os.PathLike[str],
    real: Any,
    passes: int,
    *,
    share: float = 0.5,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> DeviceLoader:
    """Returns batches of a ``.beton``'s images and of real ones, shuffled: one epoch for a short training on both.

    Args:
        path: The file; its card must lie beside it.
        real: The real training images: an :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
        passes: The images of the epoch, which may come several times, see
            :func:`tgdd_plugin.data.mixing.mixed_images`.
        share: The share of the file's images among them, from 0 to 1. Default: ``0.5``.
        batch_size, seed, device: As in :func:`beton_loader`; the seed is also that of the draw.

    Returns:
        An iterable with ``len()``; float32 images ``(B, C, H, W)``, normalized as the card says, and int64 labels.

    Raises:
        InputError: If the file, its card or the device cannot be used, the real images do not fit the file, or a
            number is out of range.
    """
    check_seed(seed)
    path, on = Path(path), any_device(device)
    check_whole_number("passes", passes, 1)
    card = read_card(path)
    images, labels = mixed_images(*read_beton(path), fitting_pool(real, "real", path, card), passes, share, seed)
    return DeviceLoader(images, labels, card.normalization, batch_size=batch_size, seed=seed, device=on)


class _FFCVLoader:
    """An ``ffcv.Loader`` that keeps the process' thread numbers, and leaves no thread behind after an early stop."""

    def __init__(self, path: Path, card: Card, batch_size: int, shuffle: bool, seed: int, device: torch.device) -> None:
        fields = check_beton(path, card).fields
        self.swapped = fields.index("label") < fields.index("image")
        self.path, self.channels = path, card.shape[0]
        repeats = 3 // self.channels  # FFCV's images have three channels
        self.normalization = Normalization(card.mean * repeats, card.std * repeats)
        ranks = dist.get_world_size()
        self.batch_size = min(batch_size, -(-card.images // ranks))  # Composer wants to know it
        with restored_threads():
            from ffcv.fields.basics import IntDecoder
            from ffcv.fields.rgb_image import SimpleRGBImageDecoder
            from ffcv.loader import Loader, OrderOption
            from ffcv.transforms import NormalizeImage, Squeeze, ToDevice, ToTensor, ToTorchImage

            scale = [np.array(values) * 255 for values in (self.normalization.mean, self.normalization.std)]
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

    def __repr__(self) -> str:
        return f"FFCVLoader({len(self)} batches of {self.batch_size} from '{printable(str(self.path))}')"

    def __iter__(self) -> Iterator[Sequence[torch.Tensor]]:
        with restored_threads():
            batches = iter(self.loader)
            # FFCV's thread sets the numbers once more, before its first batch.
            batch = next(batches, None)
        try:
            while batch is not None:
                images, labels = batch[::-1] if self.swapped else batch  # fields come in the order of the file
                yield images[:, : self.channels], labels
                batch = next(batches, None)
        finally:
            batches.close()
