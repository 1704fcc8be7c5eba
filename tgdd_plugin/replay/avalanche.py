"""AvalancheBuffer: a replay memory as Avalanche's strategies use one, a data set that grows with each experience.

Avalanche (``avalanche-lib`` 0.6) is not imported. Its ``ReplayPlugin`` asks a buffer for ``max_size``, ``buffer`` and
``update()`` (``avalanche/training/plugins/replay.py``); ``post_adapt()`` and ``resize()`` complete what its own buffers
have (``avalanche/training/storage_policy.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.data.conversion import read_items
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.replay.budget import Budget
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.sources import Source, SourceLike, identify


class AvalancheBuffer:
    """The storage policy of Avalanche's ``ReplayPlugin``, kept in a :class:`ReplayMemory`::

        memory = ReplayMemory(total_images=200, mean=mean, std=std)
        replay = ReplayPlugin(mem_size=200, storage_policy=AvalancheBuffer(memory))

    Args:
        memory: The memory.
        collect: A function ``(agent, experience) -> source`` that chooses what to keep of an experience: a source as
            :meth:`ReplayMemory.add` takes it, such as the ``.beton`` distilled from the experience; or ``None`` for
            nothing, or if it has called :meth:`ReplayMemory.add` itself. Default: the images of the experience. Classes
            may come back in later experiences, which then share the images of the class.
        transform: What makes an item's image of a uint8 image ``(C, H, W)``, such as the strategy's transforms for
            training. Default: the memory's normalization alone.
    """

    def __init__(
        self,
        memory: ReplayMemory,
        collect: Callable[[Any, Any], SourceLike | None] | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.memory = memory
        self.collect = collect
        self.transform = transform

    @property
    def max_size(self) -> int:
        """The most images that can be stored, as far as the number of classes and the images' size are known.

        Raises:
            InputError: If nothing is known: the budget is one for each class, and there is no class yet.
        """
        memory = self.memory
        if not memory.classes and memory.budget.kind == "images_per_class":
            raise InputError(
                "`classes` must be named for a memory of images_per_class, as Avalanche asks how many images it holds "
                "in all, got none. Give ReplayMemory the names of all classes, or total_images."
            )
        size = memory.images[0].numel() if len(memory) else 1
        return memory.budget.capacity(len(memory.classes), size)

    @property
    def buffer(self) -> MemoryDataset:
        """The decoded images as a data set."""
        return MemoryDataset.of(self.memory, self.transform)

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Adds what ``collect`` makes of an experience."""
        if self.collect is None:
            source: SourceLike | None = experience_pool(exp.dataset, self.memory.normalization())
        else:
            source = self.collect(agent, exp)
        if source is not None:
            with forked_streams():  # its transform for training draws
                _, _, *labels = exp.dataset[0]
            _check_ids(source, self.memory, exp)
            self.memory.add(source, label=int(labels[0]) if labels else None, domain=True)

    def update(self, strategy: Any, **_: Any) -> None:
        """Calls :meth:`post_adapt` with the experience of the strategy."""
        self.post_adapt(strategy, strategy.experience)

    def resize(self, strategy: Any, new_size: int) -> None:
        """Sets the budget to ``new_size`` images in total.

        Raises:
            InputError: If that is less than one image of each class.
        """
        self.memory.set_budget(Budget.of(total_images=new_size))


class MemoryDataset(Dataset):
    """A data set of items (normalized image, class id), to which ``task_labels`` adds the task label.

    A class id is a tensor without dimensions, which collates with labels that are tensors and with plain numbers.

    Args:
        images: uint8 images, ``(N, C, H, W)``.
        labels: Class ids, ``(N,)``.
        normalization: What the images are normalized with; an empty set needs none.
        task_labels: Avalanche's task labels, ``(N,)``. Default: none.
        transform: In place of the normalization, from a uint8 image ``(C, H, W)``. Default: none.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        normalization: Normalization | None,
        task_labels: torch.Tensor | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.images, self.labels = images.cpu(), labels  # workers of a DataLoader may not touch a GPU
        self.transform = normalization if transform is None else transform
        self.task_labels = task_labels
        self.targets: list[int] = labels.tolist()

    @classmethod
    def of(cls, memory: ReplayMemory, transform: Callable[[torch.Tensor], torch.Tensor] | None = None) -> MemoryDataset:
        """Returns the decoded images of a memory."""
        labels = [task.label for task in memory.tasks]
        own = None
        if any(label is not None for label in labels):
            own = torch.tensor([label or 0 for label in labels])[memory.sources].repeat_interleave(memory.factor**2)
        normalization = memory.normalization() if len(memory) else None
        return cls(memory.decoded, memory.decoded_labels, normalization, own, transform)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        assert self.transform is not None  # there is an image
        item = self.transform(self.images[index]), self.labels[index]
        return item if self.task_labels is None else (*item, int(self.task_labels[index]))


def _check_ids(source: SourceLike, memory: ReplayMemory, exp: Any) -> None:
    """Checks that the classes of a source get the ids that the strategy knows them by.

    Raises:
        InputError: If one gets an id that is not among those of the experience.
    """
    wanted = {int(one) for one in getattr(exp, "classes_in_this_experience", None) or ()}
    if not wanted:
        return
    offered = Source.of(source, None, memory.classes)
    names, ids = identify(offered, memory.classes, memory.growing)
    other = sorted(set(ids[offered.pool.counts > 0].tolist()) - wanted)
    if other:
        raise InputError(
            f"`classes` must give the memory's classes the ids of the strategy, which are "
            f"{', '.join(map(str, sorted(wanted)))} in this experience, got {other[0]} for '{names[other[0]]}'. Give "
            f"ReplayMemory the names of all classes, in the order of the strategy's ids."
        )


def experience_pool(dataset: Any, normalization: Normalization) -> ImagePool:
    """Reads the images of an Avalanche experience as uint8, as its transforms for evaluation leave them.

    Args:
        dataset: The data set of the experience, with items (image, class id, ...).
        normalization: What images that are floating-point tensors were normalized with.

    Raises:
        InputError: If an item is something else, or was normalized otherwise.
    """
    dataset = dataset.eval() if hasattr(dataset, "eval") else dataset  # the transforms for training augment
    with forked_streams():  # a transform may draw
        return ImagePool(*read_items(Experience(dataset, normalization), progress=False))


class Experience:
    """The items (image, class id) of a data set, with normalized images as pixels in [0, 1]."""

    def __init__(self, dataset: Any, normalization: Normalization) -> None:
        self.dataset, self.normalization = dataset, normalization

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        image, label, *_ = self.dataset[position]
        if isinstance(image, torch.Tensor) and image.is_floating_point():
            pixels = self.normalization.denormalize(image.cpu())
            image = pixels.clamp(0, 1)
            if (pixels - image).abs().max() > 1e-3:  # more than rounding, which is told of the item
                image = pixels
        return image, label
