"""ReplayMemory: what a continual learner keeps of its earlier tasks, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.beton.multi_formation import unpack
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.replay.avalanche import MemoryDataset, experience_pool
from tgdd_plugin.replay.budget import Budget
from tgdd_plugin.replay.ordering import arrange, draw, most_representative
from tgdd_plugin.replay.sources import Offer, Source, identify
from tgdd_plugin.replay.storage import Saved, Task, read_memory, write_memory


class ReplayMemory:
    """Images of the tasks so far, as uint8 on one device, with the same budget for each class.

    A class' images lie in the order of herding (:func:`tgdd_plugin.data.coresets.herding`), in which a prefix is the best
    smaller set: when classes come and the share of each shrinks, the last ones go. Of a packed file (``packed`` in
    :class:`tgdd_plugin.distillation.settings.DistillSettings`) the stored images are kept and count, and those that they decode to
    are sampled; of another every image counts.

    It holds ``images`` ``(N, C, H, W)``, their class ids ``labels`` and ``sources``, positions in ``tasks``, both
    ``(N,)``. ``decoded`` ``(N·f², C, H, W)`` and ``decoded_labels`` are made of them.

    Args:
        classes: Names of the classes, in the order of the network's outputs and the loader's labels: the class ids.
            Default: ``None``, a class gets the next id when it comes, as in a head that grows; one whose name is a
            number, that number.
        images_per_class, total_images, total_bytes: The budget, one of them; see :class:`tgdd_plugin.replay.budget.Budget`.
        mean, std: Per-channel normalisation that the learner trains with, for pixels in [0, 1]. Default: that of the
            first card.
        device: Where the images are. Default: ``'cpu'``.
        collect: ``(agent, experience) -> source``, what to keep of an Avalanche experience: a source as for
            :meth:`add`, such as the ``.beton`` distilled from it; ``None`` for nothing, or if it has called :meth:`add`
            itself. Default: its images.

    Raises:
        InputError: If there is not one budget, or it is less than one image of each class that is named.
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
        collect: Callable[[Any, Any], Source | None] | None = None,
    ) -> None:
        self.budget = Budget.of(images_per_class=images_per_class, total_images=total_images, total_bytes=total_bytes)
        self._normalization = Normalization.of(mean, std)
        self.classes = [str(name) for name in classes or ()]
        if len(set(self.classes)) < len(self.classes):
            raise InputError(f"the classes {', '.join(self.classes[:12])} have one name twice; name each differently")
        self.budget.share(len(self.classes), 1)  # now, rather than when the first task has been trained
        self.factor = 1
        self.tasks: list[Task] = []
        self.device = torch.device(device)
        self.collect = collect
        self.growing = classes is None
        self.images = self.decoded = torch.empty(0, 1, 1, 1, dtype=torch.uint8, device=self.device)
        self.labels = self.sources = self.decoded_labels = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Stored images."""
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored pixels."""
        return self.images.nbytes

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(C, H, W); ``None`` while the memory is empty."""
        return tuple(self.images.shape[1:]) if len(self) else None

    @property
    def counts(self) -> torch.Tensor:
        """Stored images of each class, ``(K,)``."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    def to(self, device: torch.device | str) -> ReplayMemory:
        """Moves the images."""
        self.device = torch.device(device)
        self.images, self.decoded = self.images.to(self.device), self.decoded.to(self.device)
        return self

    @property
    def mean(self) -> list[float] | None:
        """The mean of the normalization; ``None`` if it is not known."""
        return None if self._normalization is None else list(self._normalization.mean)

    @property
    def std(self) -> list[float] | None:
        """The standard deviation of the normalization; ``None`` if it is not known."""
        return None if self._normalization is None else list(self._normalization.std)

    def normalization(self) -> Normalization:
        """What the learner's images are normalized with.

        Raises:
            InputError: If it is not known.
        """
        if self._normalization is None:
            raise InputError("the memory knows no normalization; give ReplayMemory mean= and std= as in training")
        return self._normalization

    def add(
        self,
        source: Source,
        *,
        classes: Sequence[str | int] | None = None,
        name: str | None = None,
        domain: bool = False,
        features: Callable[[torch.Tensor], torch.Tensor] | None = None,
        label: int | None = None,
    ) -> None:
        """Adds a task's images; those of earlier tasks shrink where they must. An error leaves all as it was.

        Args:
            source: A ``.beton`` with its card; or real exemplars, as an :class:`ImagePool` or as uint8 images
                ``(N, C, H, W)`` and labels ``(N,)``. Soft labels are not kept.
            classes: What the source's labels 0, 1, ... are: the memory's classes, by name or id. Default: as card or
                pool name them; without names, labels are the memory's ids.
            name: Of the task. Default: ``'task <number>'``.
            domain: Whether these may be more images of classes that are in the memory, of which all their tasks then
                have an equal share. Default: ``False``, such a class is an error.
            features: From uint8 images ``(N, C, H, W)`` to what herding compares, ``(N, D)``. Default: their pixels.
            label: Avalanche's task label. Default: ``None``.

        Raises:
            InputError: If the images do not fit those in the memory, a class is in it already or none of its named
                ones, or the budget is less than one image of each class.
        """
        offer = Offer.of(source, classes)
        if len(self):
            offer.check_form(self.images.shape[1:], self.factor)
        normalization = offer.agreed_normalization(self._normalization)
        name = f"task {len(self.tasks)}" if name is None else name
        if name in (task.name for task in self.tasks):
            raise InputError(f"the memory has a task '{name}' already; give this one another name")
        names, ids = identify(offer, self.classes, self.growing)
        known, new = set(self.labels.tolist()), ids[offer.pool.counts > 0].tolist()
        if (twice := [one for one in new if one in known]) and not domain:
            raise InputError(
                f"class '{names[twice[0]]}' of '{name}' is in the memory already; say with classes= what the labels "
                f"are, or domain=True if these are more images of the same class"
            )
        share = self.budget.share(len(known.union(new)), offer.pool.images[0].numel())
        best = most_representative(offer.pool, share, features, offer.factor)
        images, labels = offer.pool.take(best).to(self.device), ids[offer.pool.labels[best]]
        self.classes, self.factor, self._normalization = names, offer.factor, normalization
        self.tasks.append(Task(name, label))
        sources = torch.full_like(labels, len(self.tasks) - 1)
        images = torch.cat([self.images, images]) if len(self) else images
        self._keep(images, torch.cat([self.labels, labels]), torch.cat([self.sources, sources]), share)

    def sample(
        self, count: int, generator: torch.Generator, balanced: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws images, decoded ones, by :func:`tgdd_plugin.replay.ordering.draw`.

        Args:
            count: How many.
            generator: On any device.
            balanced: Whether as many of each class, up to one. Default: ``True``; else all images are equally likely.

        Returns:
            uint8 images ``(count, C, H, W)`` and int64 class ids ``(count,)``, on the device.

        Raises:
            InputError: If the memory is empty.
        """
        if not len(self):
            raise InputError("the memory is empty; add a set before sampling from it")
        index = draw(self.decoded_labels.to(generator.device), count, generator, balanced)
        return self.decoded[index.to(self.device)], self.decoded_labels[index.cpu()].to(self.device)

    def save(self, path: str | Path) -> Path:
        """Writes a ``.beton`` and its card, packed if what was added is; see :mod:`tgdd_plugin.replay.storage`.

        Raises:
            InputError: If the memory is empty or knows no normalisation.
        """
        if not len(self):
            raise InputError(f"the memory is empty, and so not written to '{path}'; add a set first")
        budget = {self.budget.kind: self.budget.amount}
        saved = Saved(
            self.classes,
            self.growing,
            budget,
            self.normalization(),
            self.factor,
            self.tasks,
            self.images,
            self.labels,
            self.sources,
        )
        return write_memory(saved, path)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> ReplayMemory:
        """A memory that was saved.

        Args:
            path: The file; its card must lie beside it.
            options: ``device`` and ``collect``, see :class:`ReplayMemory`.

        Raises:
            InputError: If there is none, or it is damaged.
        """
        saved = read_memory(path)
        named = None if saved.growing else saved.classes
        memory = cls(named, mean=saved.normalization.mean, std=saved.normalization.std, **saved.budget, **options)
        memory.classes, memory.tasks, memory.factor = saved.classes, saved.tasks, saved.factor
        memory._hold(saved.images, saved.labels, saved.sources)
        return memory

    # What Avalanche's strategies ask of a buffer; see tgdd_plugin.replay.avalanche.

    @property
    def max_size(self) -> int:
        """Most stored images, as far as the number of classes and their size are known."""
        return self.budget.most(len(set(self.labels.tolist())), self.images[0].numel() if len(self) else 1)

    @property
    def buffer(self) -> MemoryDataset:
        """The decoded images as a data set."""
        return MemoryDataset.of(self)

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Adds what ``collect`` makes of an experience."""
        source = self.collect(agent, exp) if self.collect else experience_pool(exp.dataset, self.normalization())
        if source is not None:
            _, _, *labels = exp.dataset[0]
            self.add(source, label=int(labels[0]) if labels else None)

    def update(self, strategy: Any, **_: Any) -> None:
        """:meth:`post_adapt` with the strategy's experience."""
        self.post_adapt(strategy, strategy.experience)

    def resize(self, strategy: Any, new_size: int) -> None:
        """Makes ``new_size`` images in all the budget.

        Raises:
            InputError: If that is less than one of each class.
        """
        budget = Budget.of(total_images=new_size)
        share = budget.share(len(set(self.labels.tolist())), 1)
        self.budget = budget
        self._keep(self.images, self.labels, self.sources, share)

    def _keep(self, images: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, share: int) -> None:
        kept = arrange(labels, sources, share)
        self._hold(images[kept.to(images.device)], labels[kept], sources[kept])

    def _hold(self, images: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor) -> None:
        self.images, self.labels, self.sources = images.to(self.device), labels, sources
        # Now, as every step of training samples from them.
        self.decoded = self.images if self.factor == 1 else unpack(self.images, self.factor).to(self.device)
        self.decoded_labels = labels.repeat_interleave(self.factor**2)
