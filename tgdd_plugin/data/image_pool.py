"""Real images by class, as uint8 in one tensor: on the device if they fit, memory-mapped if not."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch

from tgdd_plugin.core.checked_json import MOST_CLASSES
from tgdd_plugin.core.class_names import as_names, number_names
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.usage import free_gpu_memory
from tgdd_plugin.data.allocation import allocate
from tgdd_plugin.data.batch_size import number_at_once
from tgdd_plugin.data.conversion import read_items


class ImagePool:
    """N real images with their labels.

    Args:
        images: uint8 of shape ``(N, C, H, W)``, C 1 or 3.
        labels: Class ids of shape ``(N,)``, as a tensor, an array or a list.
        classes: Names of the K classes. Default: ``None``, their numbers up to the largest label.

    Raises:
        InputError: If the images are not uint8 ``(N, C, H, W)``, or a label is not a class id in 0..K-1.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor | Sequence[int], classes: Sequence[str] | None = None
    ) -> None:
        is_tensor = isinstance(images, torch.Tensor)
        if not is_tensor or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            came = f"{images.dtype} of shape {tuple(images.shape)}" if is_tensor else f"a {type(images).__name__}"
            raise InputError(
                f"`images` must be uint8 (N, C, H, W) with 1 or 3 channels, got {came}. Give such a tensor."
            )
        if len(images) == 0 or len(labels) != len(images):
            raise InputError(
                f"`images` must be at least one, with one label each, got {len(images)} images with {len(labels)} "
                f"labels. Give as many labels as images."
            )
        found = torch.as_tensor(labels).cpu()
        labels = found.long()
        if labels.ndim != 1 or (found.is_floating_point() and (labels != found).any()):
            raise InputError(
                f"`labels` must be one whole number for each image, (N,), got {found.dtype} of shape "
                f"{tuple(found.shape)}. Give class ids."
            )
        highest = int(labels.max())
        if classes is None and highest >= MOST_CLASSES:  # something other than class ids
            raise InputError(
                f"`labels` must be class ids 0, 1, 2, ..., got labels up to {highest}. Renumber the labels."
            )
        self.classes = as_names(classes) if classes is not None else number_names(max(highest + 1, 1))
        self.images = images
        self.labels = labels
        self._sort()

    def _sort(self) -> None:
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise InputError(
                "`labels` must be "
                + (f"0..{self.num_classes - 1} for {self.num_classes} classes" if low >= 0 else "numbers from 0 on")
                + f", got labels from {low} to {high}. Renumber the labels or correct the class names."
            )
        self.counts = torch.bincount(self.labels, minlength=self.num_classes)
        # The images are not moved; this lists the positions of class 0, then those of class 1, and so on.
        self._order = self.labels.argsort(stable=True)
        self._starts = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.shape)
        return f"ImagePool({len(self)} images of {shape} in {self.num_classes} classes, on {self.images.device})"

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return tuple(self.images.shape[1:])  # type: ignore[return-value]

    @property
    def block(self) -> int:
        """How many images are used at once: 4,096 of 32 pixels (100 MB in float64), fewer larger ones."""
        return 8 * number_at_once(*self.shape[1:])

    def name_classes(self, classes: Sequence[str]) -> None:
        """Sets the names of the classes, and with them K.

        Raises:
            InputError: If a label lies outside 0..K-1.
        """
        named = copy.copy(self)  # as the names may be refused
        named.classes = as_names(classes)
        named._sort()
        vars(self).update(vars(named))

    def adopt_class_names(
        self, classes: Sequence[str] | None, num_classes: int, owner: str, name: str = "real"
    ) -> None:
        """Adopts the class names of ``owner`` if the pool's are only numbers; else they must be the same, in order.

        Args:
            classes: The owner's names, or ``None``.
            num_classes: The number of classes of the owner.
            owner: The trajectory or file that has them, and ``name`` what the images are for, for an error message.

        Raises:
            InputError: If names or their order differ, or a label lies outside 0..K-1.
        """
        numbers = number_names(num_classes)
        known = list(classes) if classes is not None else numbers
        if self.classes == known:
            return
        if self.classes == number_names(self.num_classes) or (known == numbers and self.num_classes != num_classes):
            self.name_classes(known)
        elif known != numbers:
            raise InputError(
                f"The classes of the {name} images must be those of {owner}, {', '.join(known[:12])}, got "
                f"{', '.join(self.classes[:12])}. Give the same data, with its labels in the same order."
            )

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the labels and of up to 4,096 evenly spaced images: a cheap test for other images."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        spaced = torch.linspace(0, len(self) - 1, min(len(self), 4096)).long()
        for part in spaced.split(self.block):
            digest.update(self.take(part).cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> ImagePool:
        """Returns a pool with the images on a device if they fit in half of its free memory, else this one as it is."""
        device = torch.device(device)
        if device.type == "cuda" and self.images.nbytes > free_gpu_memory(device) / 2:
            return self
        moved = copy.copy(self)
        moved.images = self.images.to(device)
        return moved

    def draw(
        self,
        classes: torch.Tensor,
        count: int,
        generator: torch.Generator,
        purpose: str = "a step",
        *,
        repeat: bool = False,
    ) -> torch.Tensor:
        """Draws ``count`` images of each class without replacement.

        Args:
            classes: Class ids ``(k,)``, on the CPU.
            count: The number m of images of each class.
            generator: The source of randomness, on the CPU.
            purpose: What they are drawn for, for an error message.
            repeat: Whether a class with fewer images gives each of them equally often, but for one time. Default:
                ``False``, it is an error.

        Returns:
            Positions in the pool, ``(k, m)``, on the CPU.

        Raises:
            InputError: If a class has fewer images, with ``repeat`` none.
        """
        rows = []
        for label in classes.tolist():
            have = int(self.counts[label])
            if have < count and (have == 0 or not repeat):
                remedy = f"Ask for at most {have}, or add images of that class."
                if have == 0:
                    remedy = "Add images of that class, or leave it out (distill.classes names those to distill)."
                raise InputError(
                    f"Class {label} ('{self.classes[label]}') has {have or 'no'} real images, {count} were asked for "
                    f"{purpose}. {remedy}"
                )
            orders = [torch.randperm(have, generator=generator) for _ in range(max(1, math.ceil(count / max(have, 1))))]
            rows.append(self._order[self._starts[label] + torch.cat(orders)[:count]])
        return torch.stack(rows)

    def names_of(self, labels: torch.Tensor) -> list[str]:
        """Returns the names of classes, by their ids ``(k,)``."""
        return [self.classes[label] for label in labels.tolist()]

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Returns the uint8 images at positions ``index`` of any shape, ``(*index.shape, C, H, W)``."""
        return self.images[index.to(self.images.device)]

    def subset(self, index: torch.Tensor) -> ImagePool:
        """Returns a pool of copies of the images at positions ``index`` ``(n,)``."""
        if self.images.is_cuda:
            return ImagePool(self.take(index), self.labels[index.cpu()], self.classes)
        images = allocate((len(index), *self.shape))  # a large pool's copy is large, too
        for part, block in zip(images.split(self.block), index.split(self.block), strict=True):
            part.copy_(self.take(block))
        return ImagePool(images, self.labels[index], self.classes)

    def split(self, fraction: float, generator: torch.Generator) -> tuple[ImagePool, ImagePool]:
        """Splits the pool at random into two: ``1 - fraction`` and ``fraction`` of every class.

        Raises:
            InputError: If one of them would be empty.
        """
        held, kept = [], []
        for label in range(self.num_classes):
            count = int(self.counts[label])
            index = self.draw(torch.tensor([label]), count, generator)[0]
            cut = round(count * fraction)
            held.append(index[:cut])
            kept.append(index[cut:])
        pools = torch.cat(kept), torch.cat(held)
        if not len(pools[0]) or not len(pools[1]):
            raise InputError(
                f"A share of {fraction} of {len(self)} images in {self.num_classes} classes leaves {len(pools[0])} and "
                f"{len(pools[1])} images. Choose a share that leaves some in both parts."
            )
        return self.subset(pools[0]), self.subset(pools[1])

    def statistics(self) -> tuple[list[float], list[float]]:
        """Returns the per-channel mean and standard deviation of the pixels in [0, 1]."""
        total = torch.zeros(self.images.shape[1], dtype=torch.float64)
        squares = total.clone()
        for block in self.images.split(self.block):
            values = block.double() / 255
            total += values.sum((0, 2, 3)).cpu()
            squares += values.square().sum((0, 2, 3)).cpu()
        count = self.images.numel() / self.images.shape[1]
        mean = total / count
        # A constant channel would otherwise divide by zero.
        std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        return mean.tolist(), std.tolist()

    @classmethod
    def from_dataset(cls, dataset: Any, *, classes: Sequence[str] | None = None, progress: bool = False) -> ImagePool:
        """Reads any map-style data set of (image, int) pairs, once.

        Args:
            dataset: A data set with ``__len__`` and ``__getitem__``; an image may be PIL, a uint8 array ``(H, W)`` or
                ``(H, W, C)``, or a tensor ``(C, H, W)``, uint8 or floating point in [0, 1]. It should not normalize
                or augment: distillation does both. A pool is taken as it is.
            classes: Names of the classes. Default: the data set's ``classes`` if it has them, else numbers.
            progress: Whether to show a progress bar.

        Raises:
            InputError: If an item is not such a pair, sizes differ, values leave [0, 1], or a label is out of range.
        """
        if isinstance(dataset, ImagePool):
            return dataset if classes is None else cls(dataset.images, dataset.labels, classes)
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InputError(
                f"The images must be a map-style data set, with len() and dataset[i], got a {type(dataset).__name__}. "
                f"Give the data set itself, such as that of a loader."
            )
        images, labels = read_items(dataset, progress=progress)
        if classes is None and isinstance(named := getattr(dataset, "classes", None), list | tuple):
            classes = named  # a number or a mapping is something else
        return cls(images, labels, classes)
