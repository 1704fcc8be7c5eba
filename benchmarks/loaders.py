"""The loaders that are compared, all of one file of random images, and whether each serves what was written.

The stock ffcv.Loader is written as FFCV's documentation has it, with drop_last=False and os_cache=True; on the CPU it
is spared ToDevice, which copies there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from tgdd_plugin import Card, beton_loader, write_beton
from tgdd_plugin.core.device import torch_device

DEVICE, STOCK, OWN = "device loader", "stock FFCV", "backend='ffcv'"
CLASSES, MEAN, STD = 10, [0.5] * 3, [0.25] * 3


class Data(NamedTuple):
    """A ``.beton``, and what was written into it."""

    path: Path
    images: torch.Tensor
    labels: torch.Tensor


def write_images(folder: Path, size: int, side: int) -> Data:
    """Random colour images of ten classes, as a ``.beton``."""
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(size) % CLASSES
    card = Card([str(i) for i in range(CLASSES)], 0, -(-size // CLASSES), [], MEAN, STD)
    return Data(write_beton(folder / f"{size}.beton", images, labels, card), images, labels)


def stock_ffcv(path: Path, batch_size: int, workers: int, on: torch.device, by_torch: bool) -> Any:
    """FFCV's loader by FFCV's documentation.

    Args:
        path: The file.
        batch_size, workers: Of the loader.
        on: Where batches are wanted.
        by_torch: Whether torch normalizes them there, as in FFCV's CIFAR-10 example: on a GPU FFCV's own operation
            wants cupy.
    """
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Convert, NormalizeImage, Squeeze, ToDevice, ToTensor, ToTorchImage

    mean, std = np.array(MEAN) * 255, np.array(STD) * 255
    image: list[Any] = [SimpleRGBImageDecoder()]
    label: list[Any] = [IntDecoder(), ToTensor(), Squeeze(1)]
    if by_torch:
        to_device = ToDevice(on, non_blocking=True)
        image += [ToTensor(), to_device, ToTorchImage(), Convert(torch.float32), Normalize(mean.tolist(), std.tolist())]
        label.append(ToDevice(on, non_blocking=True))
    else:
        image += [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
    return Loader(
        str(path),
        batch_size=batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        drop_last=False,
        os_cache=True,
        pipelines={"image": image, "label": label},
    )


class Pictures(Dataset):
    """PIL images out of an array, as torchvision's CIFAR10 has them."""

    def __init__(self, data: Data) -> None:
        self.images = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()
        self.transform = Compose([ToTensor(), Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def torch_loader(data: Data, batch_size: int, workers: int, on: torch.device) -> DataLoader:
    """torch's loader; its workers stay from epoch to epoch."""
    return DataLoader(
        Pictures(data),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=on.type == "cuda",
    )


def builders(data: Data, batch_size: int, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What builds each loader, the device-resident one first."""
    on = torch_device(options.device)
    sides: dict[str, Callable[[], Any]] = {
        DEVICE: lambda: beton_loader(data.path, batch_size, device=on),
        STOCK: lambda: stock_ffcv(data.path, batch_size, options.workers, on, on.type == "cuda"),
        OWN: lambda: beton_loader(data.path, batch_size, backend="ffcv", device=on),
    }
    for workers in options.torch_workers:
        sides[f"torch, {workers} workers"] = functools.partial(torch_loader, data, batch_size, workers, on)
    return sides


def check_same(name: str, loader: Any, data: Data) -> None:
    """Serves an epoch, and sees whether its images and labels are those that were written, each as often.

    Raises:
        RuntimeError: If not.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    came: Counter[bytes] = Counter()
    for images, labels in loader:
        pixels = (images.cpu() * std + mean) * 255
        if not (pixels - pixels.round()).abs().max() < 0.01:
            raise RuntimeError(f"{name} does not serve pixels normalized as they should be")
        came += _count(pixels.round().to(torch.uint8), labels.cpu())
    if came != _count(data.images, data.labels):
        raise RuntimeError(f"{name} does not serve the {len(data.labels)} images that were written, each once")


def _count(images: torch.Tensor, labels: torch.Tensor) -> Counter[bytes]:
    pairs = zip(images.contiguous().numpy(), labels.tolist(), strict=True)
    return Counter(hashlib.blake2b(image.tobytes() + bytes([label]), digest_size=16).digest() for image, label in pairs)
