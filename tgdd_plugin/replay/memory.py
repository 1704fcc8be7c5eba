"""ReplayMemory: the images that a continual learner keeps of its earlier tasks, within a budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.beton.multi_formation import unpack
from tgdd_plugin.core.class_names import as_names
from tgdd_plugin.core.device import any_device
from tgdd_plugin.core.errors import InputError, check_whole_number
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.replay.budget import Budget
from tgdd_plugin.replay.ordering import arrange, draw, most_representative
from tgdd_plugin.replay.sources import Source, SourceLike, check_names, check_new_classes, identify
from tgdd_plugin.replay.storage import MemoryTask, SavedMemory, read_memory, write_memory

AVALANCHE = ("buffer", "max_size", "post_adapt", "resize", "update")
"""What :class:`tgdd_plugin.replay.avalanche.AvalancheBuffer` has, and the memory had itself until version 0.1."""


class ReplayMemory:
    """Images of the tasks so far, as uint8 on one device, with the same budget for each class.

    The images of a class are kept in the order of herding (:func:`tgdd_plugin.data.coresets.herding`), in which a
    prefix is the best smaller set: as classes are added and the share of each shrinks, the last images are dropped. Of
    a packed file (``packed`` in :class:`tgdd_plugin.distillation.settings.DistillSettings`) the stored images are kept
    and counted, and those that they decode to are sampled; of any other set every image counts.

    Its attributes are ``images`` ``(N, C, H, W)``, their class ids ``labels`` ``(N,)``, and ``sources`` ``(N,)``, the
    position in ``tasks`` that each came with; ``decoded`` ``(N·f², C, H, W)`` and ``decoded_labels`` are made of them.

    Args:
        classes: The names of the classes in the order of the network's outputs and the loader's labels, which are the
            class ids. Default: ``None``, a class gets the next id when it is first added, as in a head that grows; a
            class whose name is a number gets that number.
        images_per_class, total_images, total_bytes: The budget: exactly one of the three. See
            :class:`tgdd_plugin.replay.budget.Budget`.
        mean, std: The per-channel normalization that the learner trains with, for pixels in [0, 1]. Default: that of
            the first card.
        device: The torch device of the images, or ``'gpu'``. Default: ``'cpu'``.
        collect: Deprecated; give it to :class:`tgdd_plugin.replay.avalanche.AvalancheBuffer`.

    Raises:
        InputError: If there is not exactly one budget, it is less than one image of each named class, or there is no
            such device.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        *,
        images_per_class: int | None = None,
        total_images: int | None = None,
        total_bytes: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        collect: Callable[[Any, Any], SourceLike | None] | None = None,
    ) -> None:
        self.budget = Budget.of(images_per_class=images_per_class, total_images=total_images, total_bytes=total_bytes)
        self._normalization = Normalization.of(mean, std)
        self.classes = as_names(classes or ())
        check_names(self.classes)
        self.budget.share(len(self.classes), 1)  # now, rather than when the first task has been trained
        self.factor = 1
        self.tasks: list[MemoryTask] = []
        self.device = any_device(device)
        self.growing = classes is None
        self.images = self.decoded = torch.empty(0, 1, 1, 1, dtype=torch.uint8, device=self.device)
        self.labels = self.sources = self.decoded_labels = torch.empty(0, dtype=torch.int64)
        if collect is not None:
            _warn_of_move("the argument collect")
        self._collect = collect

    def __len__(self) -> int:
        """The number of stored images."""
        return len(self.labels)

    def __repr__(self) -> str:
        seen = int((self.counts > 0).sum())
        return (
            f"ReplayMemory({len(self)} images of {seen} of {len(self.classes)} classes from {len(self.tasks)} tasks, "
            f"{self.nbytes:,} bytes, {self.budget.kind}={self.budget.amount}, on {self.device})"
        )

    @property
    def nbytes(self) -> int:
        """The bytes of the stored pixels."""
        return self.images.nbytes

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(C, H, W); ``None`` while the memory is empty."""
        return tuple(self.images.shape[1:]) if len(self) else None

    @property
    def counts(self) -> torch.Tensor:
        """The number of stored images of each class, ``(K,)``."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    @property
    def mean(self) -> list[float] | None:
        """The mean of the normalization; ``None`` if it is not known."""
        return None if self._normalization is None else list(self._normalization.mean)

    @property
    def std(self) -> list[float] | None:
        """The standard deviation of the normalization; ``None`` if it is not known."""
        return None if self._normalization is None else list(self._normalization.std)

    def normalization(self) -> Normalization:
        """Returns what the learner's images are normalized with.

        Raises:
            InputError: If it is not known.
        """
        if self._normalization is None:
            raise InputError(
                "`mean` and `std` must be known to the memory, got neither. Give ReplayMemory those of the training."
            )
        return self._normalization

    def to(self, device: torch.device | str) -> ReplayMemory:
        """Moves the images to a device, and returns the memory."""
        self.device = any_device(device)
        self.images, self.decoded = self.images.to(self.device), self.decoded.to(self.device)
        return self

    def add(
        self,
        source: SourceLike,
        *,
        classes: Sequence[str | int] | None = None,
        name: str | None = None,
        domain: bool = False,
        features: Callable[[torch.Tensor], torch.Tensor] | None = None,
        label: int | None = None,
    ) -> None:
        """Adds a task's images; those of earlier tasks shrink where they must. An error leaves everything as it was.

        Args:
            source: A ``.beton`` with its card; or real exemplars, as an :class:`ImagePool` or as uint8 images
                ``(N, C, H, W)`` and labels ``(N,)``. Soft labels are not kept.
            classes: Which of the memory's classes the labels 0, 1, ... of the source are, by name or id. Default: as
                the card or pool names them; without names, the labels are the memory's ids.
            name: The name of the task. Default: ``'task <number>'``.
            domain: Whether these may be more images of classes that are in the memory already; all tasks of such a
                class then have an equal share of it. Default: ``False``, such a class is an error.
            features: A function from uint8 images ``(N, C, H, W)`` to what herding compares, ``(N, D)``. Default: the
                pixels.
            label: Avalanche's task label. Default: ``None``.

        Raises:
            InputError: If the images do not fit those in the memory, a class is in it already or not one of its named
                ones, or the budget is less than one image of each class.
        """
        offered = Source.of(source, classes, self.classes)
        if len(self):
            offered.check_form(self.images.shape[1:], self.factor)
        normalization = offered.agreed_normalization(self._normalization)
        name = f"task {len(self.tasks)}" if name is None else name
        if name in (task.name for task in self.tasks):
            raise InputError(f"`name` must be new to the memory, got '{name}' again. Give this task another name.")
        names, ids = identify(offered, self.classes, self.growing)
        known, new = set(self.labels.tolist()), ids[offered.pool.counts > 0].tolist()
        if not domain:
            check_new_classes(new, known, names, name)
        count, size = len(known.union(new)), offered.pool.images[0].numel()
        share, remainder = self.budget.share(count, size), self.budget.remainder(count, size)
        best = most_representative(offered.pool, share + (remainder > 0), features, offered.factor)
        images, labels = offered.pool.take(best).to(self.device), ids[offered.pool.labels[best]]
        sources = torch.full_like(labels, len(self.tasks))
        images = torch.cat([self.images, images]) if len(self) else images
        both = torch.cat([self.labels, labels]), torch.cat([self.sources, sources])
        self._keep(images, *both, share, remainder, offered.factor)
        self.classes, self._normalization = names, normalization
        self.tasks.append(MemoryTask(name, label, offered.pool.fingerprint()))

    def set_budget(self, budget: Budget) -> None:
        """Changes the budget, and drops what exceeds it.

        Raises:
            InputError: If it is less than one image of each class in the memory, which stays as it was, or no budget.
        """
        if not isinstance(budget, Budget):
            raise InputError(f"`budget` must be a Budget, got {budget!r}. Give Budget.of(images_per_class=...).")
        size = self.images[0].numel() if len(self) else 1
        count = int((self.counts > 0).sum())
        share, remainder = budget.share(count, size), budget.remainder(count, size)
        self._keep(self.images, self.labels, self.sources, share, remainder, self.factor)
        self.budget = budget

    def sample(
        self, count: int, generator: torch.Generator, balanced: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws decoded images by :func:`tgdd_plugin.replay.ordering.draw`.

        Args:
            count: How many images to draw; beyond those that there are, images come again.
            generator: The source of randomness, on any device.
            balanced: Whether to draw equally many of each class, up to one. Default: ``True``; otherwise all images
                are equally likely.

        Returns:
            uint8 images ``(count, C, H, W)`` and int64 class ids ``(count,)``, on the memory's device.

        Raises:
            InputError: If the memory is empty, ``count`` is not a whole number of at least 0, or ``generator`` is none.
        """
        check_whole_number("count", count, 0)
        if not isinstance(generator, torch.Generator):
            raise InputError(f"`generator` must be a torch.Generator, got {generator!r}. Give torch.Generator().")
        if not len(self):
            raise InputError("The memory is empty. Add a set before sampling from it.")
        index = draw(self.decoded_labels.to(generator.device), count, generator, balanced)
        return self.decoded[index.to(self.device)], self.decoded_labels[index.cpu()].to(self.device)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Writes a ``.beton`` and its card, packed if what was added is; see :mod:`tgdd_plugin.replay.storage`.

        Args:
            path: The file. This memory as it was saved there before, with fewer tasks or more, is replaced: one of the
                same budget, to which the same images were added.
            overwrite: Whether anything else is replaced, too. Default: ``False``.

        Raises:
            InputError: If the memory is empty, its normalization is not known, or something else is at ``path``.
        """
        if not len(self):
            raise InputError(f"The memory is empty, and is not written to '{path}'. Add a set first.")
        saved = SavedMemory(
            self.classes,
            self.growing,
            {self.budget.kind: self.budget.amount},
            self.normalization(),
            self.factor,
            self.tasks,
            self.images,
            self.labels,
            self.sources,
        )
        return write_memory(saved, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> ReplayMemory:
        """Loads a memory that was saved.

        Args:
            path: The file; its card must lie beside it.
            device: The device of the images. Default: ``'cpu'``.

        Raises:
            InputError: If there is no such file, or it is damaged.
        """
        saved = read_memory(path)
        named, mean, std = None if saved.growing else saved.classes, saved.normalization.mean, saved.normalization.std
        memory = cls(named, mean=mean, std=std, device=device, **saved.budget)
        memory.classes, memory.tasks = saved.classes, saved.tasks
        memory._hold(saved.images, saved.labels, saved.sources, saved.factor)
        return memory

    def _keep(
        self, images: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, share: int, remainder: int, factor: int
    ) -> None:
        kept = arrange(labels, sources, share, remainder)
        self._hold(images[kept.to(images.device)], labels[kept], sources[kept], factor)

    def _hold(self, images: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, factor: int) -> None:
        images = images.to(self.device)
        # Decoded now, as every step of training samples from them; first, as there may be no memory for it.
        self.decoded = images if factor == 1 else unpack(images, factor).to(self.device)
        self.decoded_labels = labels.repeat_interleave(factor**2)
        self.images, self.labels, self.sources, self.factor = images, labels, sources, factor

    def __getattr__(self, name: str) -> Any:
        if name not in AVALANCHE:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        from tgdd_plugin.replay.avalanche import AvalancheBuffer  # which imports this module

        _warn_of_move(f"ReplayMemory.{name}")
        return getattr(AvalancheBuffer(self, self._collect), name)


def _warn_of_move(what: str) -> None:
    warnings.warn(
        f"{what} will go with the next release; use tgdd_plugin.replay.avalanche.AvalancheBuffer(memory, collect)",
        DeprecationWarning,
        stacklevel=3,
    )
