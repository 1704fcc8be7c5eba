"""DistilledReplay: images of a memory in every training batch, as a Composer algorithm.

Its functional form is in :mod:`tgdd_plugin.replay.functional`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tgdd_plugin.augmentation.algorithms import siamese_batch
from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.recording.introspection import find_classes, find_normalization
from tgdd_plugin.replay.functional import Batch, join_targets, replay_batch, replay_factors, replay_loss
from tgdd_plugin.replay.memory import ReplayMemory

BEFORE = (Event.BEFORE_FORWARD, Event.BEFORE_LOSS, Event.BEFORE_BACKWARD)


AFTER = (Event.AFTER_FORWARD, Event.AFTER_LOSS, Event.AFTER_BACKWARD)


class DistilledReplay(Algorithm):
    """Mixes images of a memory into every training batch; while the memory is empty, nothing is changed.

    They come right before the forward pass, after the batch's own images. Algorithms that are listed after this one in
    the Trainer (augmentation, CutMix, MixUp, label smoothing) have the whole mixture, those listed before it the
    batch's own images alone::

        algorithms=[SiameseAugmentation(), RandomCutMix(), DistilledReplay(memory)]  # the memory's images stay whole
        algorithms=[SiameseAugmentation(), DistilledReplay(memory), RandomCutMix()]  # new and old ones are cut together

    With pixels of another in it, an image still counts in the loss as what it was. Batch normalisation is over the
    mixture. Training metrics, the count of samples and ``device_train_microbatch_size`` are about the batch's own
    images; of a batch that is split, each microbatch gets its share of what was drawn for the batch, and gradient and
    loss are those of the whole batch.

    At ``BEFORE_FORWARD``, ``BEFORE_LOSS`` and ``BEFORE_BACKWARD``, callbacks and the algorithms listed after this one
    find the mixture in ``state.batch`` and ``state.outputs``; :attr:`is_memory` tells which images are the memory's. At
    the events named ``AFTER_...`` callbacks have the batch's own again.

    Draws depend on (seed, rank, batch, number of tasks) alone: every rank has its own, and a resumed run those of an
    uninterrupted one.

    Args:
        memory (ReplayMemory): Moved to the Trainer's device.
        ratio (float, optional): Images from the memory for each of the batch's own. Default: ``1.0``, as usual in
            experience replay (Chaudhry et al., 2019).
        count (int, optional): Their number in each batch, on each rank, instead of ``ratio``.
        balanced (bool): Whether as many of each class, up to one. Default: ``True``; else any image is as likely.
        weight (float, optional): Share of the memory in the loss, from 0 to 1: the loss is ``(1 - weight)`` times the
            mean over the batch's own images, and ``weight`` times the mean over the others. Default: ``None``, every
            image counts alike.
        augmentation (str): Of each image from the memory, by :func:`siamese_batch`. Take ``'none'`` if an algorithm
            listed after this one augments. Default: ``'color_crop_flip'``.
        seed (int): Of the draws. Default: ``0``.

    Raises:
        InputError: From the constructor for an unusable argument; in training if the memory's images do not fit the
            batch's, its normalisation or classes are not those of the loader, the network has too few outputs, or
            batches are not (normalised images, labels).

    Example:
        >>> trainer = Trainer(model=model, ..., algorithms=[DistilledReplay(memory)])  # doctest: +SKIP
    """

    def __init__(
        self,
        memory: ReplayMemory,
        ratio: float | None = None,
        count: int | None = None,
        *,
        balanced: bool = True,
        weight: float | None = None,
        augmentation: str = "color_crop_flip",
        seed: int = 0,
    ) -> None:
        if ratio is not None and count is not None:
            raise InputError("ratio and count both say how many images come from the memory; give one of them")
        if ratio is not None and not 0 < ratio < float("inf"):
            raise InputError(f"ratio is {ratio}; wanted a number above 0, or no DistilledReplay")
        if count is not None and (type(count) is not int or count < 1):
            raise InputError(f"count is {count!r}; wanted a whole number from 1 on, or no DistilledReplay")
        if weight is not None and not 0 <= weight <= 1:
            raise InputError(f"weight is {weight}; wanted a share of the loss from 0 to 1")
        if seed < 0:
            raise InputError(f"seed is {seed}; wanted 0 or more")
        parse_augmentation(augmentation)
        self.memory = memory
        self.ratio = 1.0 if ratio is None and count is None else ratio
        self.count = count
        self.balanced = balanced
        self.weight = weight
        self.augmentation = augmentation
        self.seed = seed
        self.own_images: int | None = None
        """How many images of the microbatch at hand are its own: the first ones. ``None`` while none is trained on."""
        # Of the batch: how many images it has of its own, how many of them have come, and what was drawn for it.
        self._batch, self._come = 0, 0
        self._images = self._labels = torch.empty(0)
        # Of the microbatch: all its images, and what algorithms that are listed earlier must not see.
        self._mixed = self._bare = self._outputs = self._targets = torch.empty(0)
        self._factors = (1.0, 0.0)
        self._model: nn.Module | None = None
        self._loss: Callable[..., Any] = lambda: None
        self._attribute: Any = None

    @property
    def is_memory(self) -> torch.Tensor | None:
        """Whether each image of the mixed microbatch at hand is the memory's, ``(N + M,)``, bool on the CPU.

        ``None`` while there is no such batch.
        """
        return None if self.own_images is None else torch.arange(len(self._mixed)) >= self.own_images

    def match(self, event: Event, state: State) -> bool:
        events = (Event.FIT_START, Event.BATCH_START, Event.BEFORE_TRAIN_BATCH, *BEFORE, *AFTER)
        return event in events and len(self.memory) > 0

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.FIT_START:
            self._check(state)
        elif event == Event.BATCH_START:
            self._draw(state)
        elif event == Event.BEFORE_TRAIN_BATCH:  # once more for the same batch under SAM, or when memory ran out
            self._come = 0
            self._release()
        elif event == Event.BEFORE_FORWARD:
            self._mix(state)
        elif event in BEFORE:
            state.outputs, state.batch = self._whole(state.outputs, state.batch)  # type: ignore[arg-type]
        else:
            self._part(state)
            if event == Event.AFTER_BACKWARD:
                self._release()

    def _check(self, state: State) -> None:
        """Raises an InputError for what can be seen to go wrong before anything is trained."""
        if sum(isinstance(algorithm, DistilledReplay) for algorithm in state.algorithms) > 1:
            raise InputError("the Trainer has two DistilledReplays; give it one, with one memory of all tasks")
        memory, present = self.memory.to(_device(state)), self.memory.counts.nonzero().flatten().tolist()
        normalization, found = memory.normalization(), Normalization.of(*find_normalization(state.train_dataloader))
        if found and not normalization.is_close(found):
            raise InputError(
                f"the loader normalizes with {found}, the memory with {normalization}; train all tasks with the same"
            )
        outputs = getattr(_bare(state.model), "num_classes", None)
        if isinstance(outputs, int) and present[-1] >= outputs:
            raise InputError(f"the memory has class {present[-1]}, the network {outputs} outputs; wanted one for each")
        names = find_classes(state.train_dataloader, outputs) if isinstance(outputs, int) else None
        for one in present if names else ():
            if names and memory.classes[one] not in (names[one], str(one)):
                raise InputError(
                    f"class {one} is '{names[one]}' for the loader and '{memory.classes[one]}' for the memory; give "
                    f"ReplayMemory the loader's classes, in their order"
                )

    def _draw(self, state: State) -> None:
        """Draws for the whole batch, so that microbatches do not change what is drawn."""
        self._batch = len(_pair(state.batch)[0])
        count = self.count or max(1, round((self.ratio or 0) * self._batch))
        generator = replay_stream(self.seed, state, len(self.memory.tasks))
        images, self._labels = self.memory.sample(count, generator, self.balanced)
        self._images = siamese_batch(self.memory.normalization()(images), self.augmentation, generator)

    def _mix(self, state: State) -> None:
        images, targets = _pair(state.batch)
        if images.shape[1:] != self._images.shape[1:] or not images.is_floating_point():
            raise InputError(
                f"the batch has {images.dtype} images of {list(images.shape[1:])} (channels, height, width), the "
                f"memory of {list(self._images.shape[1:])}; give a loader of normalised images, of the memory's shape"
            )
        # The microbatch's share, by place: the shares of all microbatches are all that was drawn.
        self.own_images, drawn, start = len(images), len(self._labels), self._come
        self._come += self.own_images
        part = slice(start * drawn // self._batch, self._come * drawn // self._batch)
        state.batch = replay_batch(images, targets, self._images[part], self._labels[part])
        self._mixed = state.batch[0]
        self._factors = replay_factors(self.own_images, part.stop - part.start, self._batch, drawn, self.weight)
        # For as long as this microbatch: no event lies between what the other algorithms make of the labels and the
        # loss, and at the next one some have set them back.
        self._model = _bare(state.model)
        self._loss, self._attribute = self._model.loss, self._model.__dict__.get("loss")  # type: ignore[assignment]
        self._model.__dict__["loss"] = self._replay_loss

    def _part(self, state: State) -> None:
        """Leaves the microbatch's own images and outputs."""
        own, outputs = self.own_images, state.outputs
        self._mixed, targets = state.batch
        if not isinstance(outputs, torch.Tensor) or len(outputs) != len(self._mixed):
            raise InputError(f"the network's outputs are a {type(outputs).__name__}; wanted logits (N, K)")
        self._outputs, self._targets, self._bare = outputs[own:], targets[own:], self._mixed[:own]
        state.outputs, state.batch = outputs[:own], (self._bare, targets[:own])

    def _whole(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Batch]:
        """The reverse of :meth:`_part`."""
        return torch.cat([outputs, self._outputs]), (self._mixed, join_targets(batch[1], self._targets))

    def _replay_loss(self, outputs: torch.Tensor, batch: Any, *arguments: Any, **options: Any) -> Any:
        """In place of the model's own."""

        def loss(outputs: torch.Tensor, batch: Batch) -> Any:
            return self._loss(outputs, batch, *arguments, **options)

        if batch[0] is self._bare:  # CutMix with interpolate_loss, listed earlier, asks for another loss of its own
            outputs, batch = self._whole(outputs, batch)
        elif batch[0] is not self._mixed:
            return loss(outputs, batch)
        assert self.own_images is not None
        return replay_loss(loss, outputs, batch, self.own_images, self._factors)

    def _release(self) -> None:
        if self._model is not None:
            del self._model.__dict__["loss"]
            if self._attribute is not None:
                self._model.__dict__["loss"] = self._attribute
        self._model, self.own_images = None, None
        self._mixed = self._bare = self._outputs = self._targets = torch.empty(0)


def replay_stream(seed: int, state: State, tasks: int) -> torch.Generator:
    """The stream that :class:`DistilledReplay` draws a batch from: another one than those of the augmentations."""
    return keyed_generator(seed, dist.get_global_rank(), state.timestamp.batch.value, 2, tasks)


def _pair(batch: Any) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, torch.Tensor) for t in batch):
        raise InputError(f"the batch is a {type(batch).__name__}; wanted a pair of tensors (images, labels)")
    return batch[0], batch[1]


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _device(state: State) -> torch.device:
    return state.device.tensor_to_device(torch.empty(0)).device
