"""DistilledReplay: a Composer algorithm that adds images of a memory to every training batch.

Its functional form is in :mod:`tgdd_plugin.replay.functional`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import nn

from tgdd_plugin.augmentation.algorithms import siamese_batch
from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.batches import images_and_labels, with_images_and_labels
from tgdd_plugin.core.errors import InputError, check_whole_number, whole_number
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.networks.classifiers import logits_of
from tgdd_plugin.recording.data_introspection import find_classes, find_normalization
from tgdd_plugin.recording.trainer_state import device_of, unwrapped
from tgdd_plugin.replay.functional import (
    batch_tensors,
    join_outputs,
    join_targets,
    part_of_outputs,
    replay_batch,
    replay_factors,
    replay_loss,
)
from tgdd_plugin.replay.memory import ReplayMemory

BEFORE = (Event.BEFORE_FORWARD, Event.BEFORE_LOSS, Event.BEFORE_BACKWARD)
AFTER = (Event.AFTER_FORWARD, Event.AFTER_LOSS, Event.AFTER_BACKWARD)
"""The events between which the batch is the mixture, and those after which it is the batch's own again."""


class DistilledReplay(Algorithm):
    """Mixes images of a memory into every training batch; while the memory is empty, nothing is changed.

    They are appended to the batch's own images right before the forward pass. Algorithms listed after this one in the
    Trainer (augmentation, CutMix, MixUp, label smoothing) see the whole mixture, those listed before it the batch's own
    images alone::

        algorithms=[SiameseAugmentation(), RandomCutMix(), DistilledReplay(memory)]  # the memory's images stay whole
        algorithms=[SiameseAugmentation(), DistilledReplay(memory), RandomCutMix()]  # new and old ones are cut together

    An image that another one was cut or mixed into still counts in the loss as what it was, the batch's own or the
    memory's. Batch normalization is over the mixture. Training metrics, the count of samples and
    ``device_train_microbatch_size`` are about the batch's own images. If a batch is split, each microbatch gets its
    share of what was drawn for the batch, and gradient and loss are those of the whole batch.

    At ``BEFORE_FORWARD``, ``BEFORE_LOSS`` and ``BEFORE_BACKWARD``, callbacks and the algorithms listed after this one
    find the mixture in ``state.batch`` and ``state.outputs``; :attr:`is_memory` tells which images are the memory's. At
    the events named ``AFTER_...`` callbacks find the batch's own again.

    Batches are pairs (images, labels), or mappings with the keys that :class:`TGDDCallback` reads
    (:func:`tgdd_plugin.core.batches.images_and_labels`), such as ``pixel_values`` and ``labels``. Other entries of a
    mapping may be single values alone. Where the network answers with a mapping that has ``logits``, as Hugging Face's
    models do, a loss that it computed itself is the mean over the mixture.

    Draws depend on (seed, rank, batch, number of tasks) alone: every rank draws its own images, and a resumed run draws
    those of an uninterrupted one.

    Args:
        memory (ReplayMemory): The memory, which is moved to the Trainer's device.
        ratio (float, optional): The number of images from the memory for each of the batch's own. Default: ``1.0``, as
            usual in experience replay (Chaudhry et al., 2019).
        count (int, optional): The number of images from the memory in each batch, on each rank, instead of ``ratio``.
        balanced (bool): Whether equally many of each class are drawn, up to one. Default: ``True``; otherwise all
            images are equally likely.
        weight (float, optional): The share of the memory in the loss, from 0 to 1: the loss is ``(1 - weight)`` times
            the mean over the batch's own images plus ``weight`` times the mean over the others. Default: ``None``,
            every image counts alike, which it has to be where the network computes the loss itself.
        augmentation (str): The augmentation of the images from the memory, see :func:`siamese_batch`. Use ``'none'`` if
            an algorithm listed after this one augments. Default: ``'color_crop_flip'``.
        seed (int): The seed of the draws. Default: ``0``.

    Raises:
        InputError: From the constructor for an unusable argument; in training if the memory's images do not fit the
            batch's, its normalization or classes are not those of the loader, the network has too few outputs, or
            batches are not (normalized images, labels) or hold more for each image.

    Example::

        trainer = Trainer(model=model, ..., algorithms=[DistilledReplay(memory)])
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
        if not isinstance(memory, ReplayMemory):
            raise InputError(
                f"`memory` must be a ReplayMemory, got a {type(memory).__name__}. ReplayMemory.load(path) reads a file."
            )
        if ratio is not None and count is not None:
            raise InputError(
                f"`ratio` must be left out where `count` says how many images come from the memory, got ratio {ratio} "
                f"and count {count}. Give one of them."
            )
        if ratio is not None and not (hasattr(ratio, "__float__") and 0 < ratio < float("inf")):
            raise InputError(
                f"`ratio` must be a finite number above 0, got {ratio!r}. Leave DistilledReplay out for none."
            )
        if count is not None and (whole_number(count) or 0) < 1:
            raise InputError(
                f"`count` must be a whole number of at least 1, got {count!r}. Leave DistilledReplay out for none."
            )
        if weight is not None and not (hasattr(weight, "__float__") and 0 <= weight <= 1):
            raise InputError(
                f"`weight` must be a share of the loss from 0 to 1, got {weight!r}. Leave it out to count images alike."
            )
        check_whole_number("seed", seed, 0)
        parse_augmentation(augmentation)
        self.memory = memory
        self.ratio = 1.0 if ratio is None and count is None else ratio
        self.count = whole_number(count)
        self.balanced = balanced
        self.weight = weight
        self.augmentation = augmentation
        self.seed = seed
        self.own_images: int | None = None
        """How many images of the current microbatch are its own: the first ones. ``None`` outside of a microbatch."""
        # The batch: how many images of its own it has, how many of them were trained on, and what was drawn for it.
        self._batch_size, self._done = 0, 0
        self._images = self._labels = torch.empty(0)
        # The microbatch: all its images, its own, and what algorithms that are listed earlier must not see.
        self._mixed = self._own = self._outputs = self._targets = torch.empty(0)
        self._factors = (1.0, 0.0)
        self._model: nn.Module | None = None
        self._loss: Callable[..., Any] = lambda: None
        self._attribute: Any = None

    @property
    def is_memory(self) -> torch.Tensor | None:
        """Whether each image of the current mixed microbatch is the memory's, ``(N + M,)``, bool on the CPU.

        ``None`` outside of a microbatch.
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
        elif event == Event.BEFORE_TRAIN_BATCH:  # again for the same batch under SAM, or when memory ran out
            self._done = 0
            self._release()
        elif event == Event.BEFORE_FORWARD:
            self._mix(state)
        elif event in BEFORE:
            state.outputs, state.batch = self._join(state.outputs, state.batch)  # type: ignore[arg-type]
        else:
            self._split(state)
            if event == Event.AFTER_BACKWARD:
                self._release()

    def _check(self, state: State) -> None:
        """Raises an InputError for whatever can be seen to be wrong before anything is trained."""
        if sum(isinstance(algorithm, DistilledReplay) for algorithm in state.algorithms) > 1:
            raise InputError(
                "`algorithms` must have one DistilledReplay, got two. Give it one with one memory of all tasks."
            )
        memory, present = self.memory.to(device_of(state)), self.memory.counts.nonzero().flatten().tolist()
        normalization, found = memory.normalization(), find_normalization(state.train_dataloader)
        if found and found.channels == 1:  # one value for all channels, as torchvision takes it
            found = found.of_channels(normalization.channels)
        if found and not normalization.is_close(found):
            raise InputError(
                f"The loader normalizes with {found}, the memory with {normalization}. Train all tasks with the same "
                f"normalization."
            )
        outputs = getattr(unwrapped(state.model), "num_classes", None)
        if isinstance(outputs, int) and present[-1] >= outputs:
            raise InputError(
                f"The network must have an output for each class of the memory, whose last one is {present[-1]}, got "
                f"{outputs} outputs. Build it for {present[-1] + 1} classes."
            )
        names = find_classes(state.train_dataloader, outputs) if isinstance(outputs, int) else None
        for one in present if names else ():
            name = memory.classes[one]
            # Its own number is what a class without a name bears, unless the loader calls another class so.
            if names and name != names[one] and (name != str(one) or name in names):
                raise InputError(
                    f"Class {one} is '{names[one]}' for the loader and '{name}' for the memory. Give "
                    f"ReplayMemory the loader's classes, in their order."
                )

    def _draw(self, state: State) -> None:
        """Draws images for the whole batch, so that microbatches do not change what is drawn."""
        self._batch_size = len(batch_tensors(state.batch)[0])
        count = self.count or max(1, round((self.ratio or 0) * self._batch_size))
        generator = replay_stream(self.seed, state, len(self.memory.tasks))
        images, self._labels = self.memory.sample(count, generator, self.balanced)
        self._images = siamese_batch(self.memory.normalization()(images), self.augmentation, generator)

    def _mix(self, state: State) -> None:
        """Appends the microbatch's share of the drawn images, and replaces the model's loss."""
        images, targets = batch_tensors(state.batch)
        if images.shape[1:] != self._images.shape[1:] or not images.is_floating_point():
            raise InputError(
                f"The batch must have normalized images of {list(self._images.shape[1:])} (channels, height, width) "
                f"like the memory, got {images.dtype} images of {list(images.shape[1:])}. Give a loader of such images."
            )
        # The microbatch's share, by position: the shares of all microbatches make up all that was drawn.
        self.own_images, drawn, start = len(images), len(self._labels), self._done
        self._done += self.own_images
        part = slice(start * drawn // self._batch_size, self._done * drawn // self._batch_size)
        self._mixed, targets = replay_batch(images, targets, self._images[part], self._labels[part])
        state.batch = with_images_and_labels(state.batch, self._mixed, targets)
        self._factors = replay_factors(self.own_images, part.stop - part.start, self._batch_size, drawn, self.weight)
        # For this microbatch alone: no event lies between what the other algorithms make of the labels and the loss,
        # and at the next event some have set them back.
        self._model = unwrapped(state.model)
        self._loss, self._attribute = self._model.loss, self._model.__dict__.get("loss")  # type: ignore[assignment]
        self._model.__dict__["loss"] = self._replay_loss

    def _split(self, state: State) -> None:
        """Leaves the microbatch's own images and outputs in the state, and keeps the others."""
        outputs, (self._mixed, targets) = state.outputs, images_and_labels(state.batch)
        own, size = self.own_images, len(self._mixed)
        logits = logits_of(outputs) if isinstance(outputs, (torch.Tensor, Mapping)) else None
        if not isinstance(logits, torch.Tensor) or len(logits) != size:
            raise InputError(
                f"The network must return logits (N, K), or a mapping with `logits`, got a {type(outputs).__name__}. "
                f"Give the Trainer a classifier."
            )
        computed = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if self.weight is not None and isinstance(computed, torch.Tensor) and computed.ndim == 0:
            raise InputError(
                f"`weight` must be left out where the network itself computes the loss, which is then one mean over "
                f"all images, got {self.weight}. Leave it out, or let the model's loss() compute it from the logits."
            )
        self._outputs, self._targets = part_of_outputs(outputs, slice(own, None), size), targets[own:]
        state.outputs, self._own = part_of_outputs(outputs, slice(own), size), self._mixed[:own]
        state.batch = with_images_and_labels(state.batch, self._own, targets[:own])

    def _join(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """The reverse of :meth:`_split`."""
        targets = join_targets(images_and_labels(batch)[1], self._targets)
        return join_outputs(outputs, self._outputs), with_images_and_labels(batch, self._mixed, targets)

    def _replay_loss(self, outputs: Any, batch: Any, *arguments: Any, **options: Any) -> Any:
        """Takes the place of the model's own loss."""

        def loss(outputs: Any, batch: Any) -> Any:
            return self._loss(outputs, batch, *arguments, **options)

        images = images_and_labels(batch)[0]
        if images is self._own:  # CutMix with interpolate_loss, listed earlier, asks for another loss of its own
            outputs, batch = self._join(outputs, batch)
        elif images is not self._mixed:
            return loss(outputs, batch)
        assert self.own_images is not None
        return replay_loss(loss, outputs, batch, self.own_images, self._factors)

    def _release(self) -> None:
        """Gives the model its own loss back, and drops the microbatch."""
        if self._model is not None:
            del self._model.__dict__["loss"]
            if self._attribute is not None:
                self._model.__dict__["loss"] = self._attribute
        self._model, self.own_images = None, None
        self._mixed = self._own = self._outputs = self._targets = torch.empty(0)


def replay_stream(seed: int, state: State, tasks: int) -> torch.Generator:
    """Returns the generator that :class:`DistilledReplay` draws a batch from; the augmentations have others."""
    return keyed_generator(seed, dist.get_global_rank(), state.timestamp.batch.value, 2, tasks)
