"""A replay memory as Avalanche's strategies see one: a data set of its images, which grows with each experience.

Avalanche (``avalanche-lib`` 0.6) is not imported. Its ``ReplayPlugin`` asks of a buffer ``max_size``, ``buffer`` and
``update()`` (``avalanche/training/plugins/replay.py``); ``post_adapt()`` and ``resize()`` complete what its own buffers
have (``avalanche/training/storage_policy.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from tgdd_plugin.data.conversion import to_pair
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization

if TYPE_CHECKING:
    from tgdd_plugin.replay.memory import ReplayMemory


class MemoryDataset(Dataset):
    """Items (normalised image, class id), and with ``task_labels`` (normalised image, class id, task label).

    A class id is a tensor without dimensions, which collates with labels that are tensors and with plain numbers.

    Args:
        images: uint8, ``(N, C, H, W)``.
        labels: ``(N,)``.
        normalization: What the images are normalized with; an empty set needs none.
        task_labels: ``(N,)``. Default: none.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        normalization: Normalization | None,
        task_labels: torch.Tensor | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.normalization = normalization
        self.task_labels = task_labels
        self.targets: list[int] = labels.tolist()

    @classmethod
    def of(cls, memory: ReplayMemory) -> MemoryDataset:
        """The decoded images of a memory."""
        labels = [task.label for task in memory.tasks]
        own = None
        if any(label is not None for label in labels):
            own = torch.tensor([label or 0 for label in labels])[memory.sources].repeat_interleave(memory.factor**2)
        normalization = memory.normalization() if len(memory) else None
        return cls(memory.decoded, memory.decoded_labels, normalization, own)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = self.images[index].cpu()
        assert self.normalization is not None  # there is an image
        item = self.normalization(image), self.labels[index]
        return item if self.task_labels is None else (*item, int(self.task_labels[index]))


def experience_pool(dataset: Any, normalization: Normalization) -> ImagePool:
    """The images of an Avalanche experience as uint8, as its transforms for evaluation leave them.

    Args:
        dataset: The experience's, of items (image, class id, ...).
        normalization: What images that are floating-point tensors were normalized with.

    Raises:
        InputError: If an item is something else, or was normalised otherwise.
    """
    dataset = dataset.eval() if hasattr(dataset, "eval") else dataset  # those for training augment
    images, labels = [], []
    for position in range(len(dataset)):
        image, label, *_ = dataset[position]
        if isinstance(image, torch.Tensor) and image.is_floating_point():
            pixels = normalization.denormalize(image.cpu())
            image = pixels.clamp(0, 1)
            if (pixels - image).abs().max() > 1e-3:  # more than rounding
                image = pixels
        image, label = to_pair((image, label), position)
        images.append(image)
        labels.append(label)
    return ImagePool(torch.stack(images), torch.tensor(labels))
