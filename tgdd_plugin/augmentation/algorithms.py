"""Training augmentation as Composer algorithms: DSA for each image, and CutMix for some of the batches.

Each has its functional form first, as Composer's algorithms do. The random draws for a batch depend on (seed, rank,
batch) alone: a resumed run draws what an uninterrupted one draws, and nothing else that draws random numbers matters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from composer.core import Algorithm, Event, State
from composer.functional import cutmix_batch
from composer.loggers import Logger
from composer.loss.utils import ensure_targets_one_hot
from composer.utils import dist

from tgdd_plugin.augmentation.dsa import augment, draw_augmentation
from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.batches import IMAGES, image_key
from tgdd_plugin.core.errors import InputError, check_whole_number
from tgdd_plugin.core.seeding import keyed_generator


def siamese_batch(images: torch.Tensor, strategy: str, generator: torch.Generator) -> torch.Tensor:
    """Augments every image with parameters of its own (DSA; Zhao and Bilen, ICML 2021), differentiably.

    Args:
        images: Normalized images ``(N, C, H, W)``, on any device.
        strategy: Operations joined by ``_``, see :mod:`tgdd_plugin.augmentation.dsa`.
        generator: The source of randomness, on the CPU.

    Returns:
        The augmented images, of the same shape.
    """
    height, width = images.shape[-2:]
    draw = draw_augmentation(strategy, len(images), (height, width), generator)
    return augment(images, {name: tensor.to(images.device, non_blocking=True) for name, tensor in draw.items()})


def draw_cutmix(count: int, size: tuple[int, int], generator: torch.Generator) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Draws the parameters of CutMix (Yun et al., ICCV 2019) for one batch, with α = 1: a uniform share of the area.

    Args:
        count: The number of images N.
        size: The height and width (H, W) of the images.
        generator: The source of randomness, on the CPU.

    Returns:
        The index of the image that each one is mixed with, ``(N,)``, and the box (top, left, bottom, right) that is
        taken from it. The centre of the box lies anywhere in the image; the part outside is cut off. Both are as
        ``composer.functional.cutmix_batch`` takes them.
    """
    order = torch.randperm(count, generator=generator)
    share, *centre = torch.rand(3, generator=generator).tolist()
    half = [side * share**0.5 / 2 for side in size]
    low = [max(0, round(c * side - h)) for c, side, h in zip(centre, size, half, strict=True)]
    high = [min(side, round(c * side + h)) for c, side, h in zip(centre, size, half, strict=True)]
    return order, (*low, *high)


class SiameseAugmentation(Algorithm):
    """Augments every image of a training batch with parameters of its own; see :func:`siamese_batch`.

    It works on normalized images on the device, before the forward pass, in any Trainer whose batches are (images,
    labels) or mappings with images under a name such as ``pixel_values``. Composer's CutMix or MixUp may stand beside
    it.

    Args:
        strategy (str): Operations joined by ``_`` (see :mod:`tgdd_plugin.augmentation.dsa`). Default:
            ``'color_crop_flip'``; as in the literature, without ``cutout`` when CutMix is used as well.
        seed (int): The seed of the draws. Default: ``0``.

    Example::

        trainer = Trainer(model=model, ..., algorithms=[SiameseAugmentation()])
    """

    def __init__(self, strategy: str = "color_crop_flip", seed: int = 0) -> None:
        parse_augmentation(strategy)
        check_whole_number("seed", seed, 0)
        self.strategy = strategy
        self.seed = seed
        self._generator = torch.Generator()

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BEFORE_TRAIN_BATCH, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BEFORE_TRAIN_BATCH:  # once for each pass over the batch: its parts share the stream
            self._generator = siamese_stream(self.seed, state)
        else:
            key = image_key(state.batch)
            images = None if key is None else state.batch_get_item(key)
            if not isinstance(images, torch.Tensor):
                raise InputError(
                    f"The batch must have a tensor of images as its first part or under one of the keys "
                    f"{', '.join(IMAGES)}, got a {type(state.batch).__name__}. Give a loader of such batches."
                )
            state.batch_set_item(key, siamese_batch(images, self.strategy, self._generator))


class RandomCutMix(Algorithm):
    """CutMix with probability ``p`` for each batch (microbatch); the literature's evaluation uses p = 0.5.

    Batches are (images, labels): a network that takes a mapping may compute its loss before the labels are mixed.

    Args:
        p (float): The probability that a batch is mixed. Default: ``0.5``.
        seed (int): The seed of the draws. Default: ``0``.
    """

    def __init__(self, p: float = 0.5, seed: int = 0) -> None:
        if not 0 <= p <= 1:
            raise InputError(f"`p` must be a share of the batches from 0 to 1, got {p}. Give 0.5 for half of them.")
        check_whole_number("seed", seed, 0)
        self.p = p
        self.seed = seed
        self.mixing = False  # whether the present batch is mixed
        self._generator = torch.Generator()
        self._others, self._share = torch.empty(0), 1.0

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BEFORE_TRAIN_BATCH, Event.BEFORE_FORWARD) or (event == Event.BEFORE_LOSS and self.mixing)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BEFORE_TRAIN_BATCH:
            if isinstance(state.batch, Mapping):
                raise InputError(
                    "The batch must be a pair (images, labels) for RandomCutMix, got a mapping. Leave the algorithm "
                    "out, or give a loader of pairs."
                )
            self._generator = cutmix_stream(self.seed, state)
            return
        images, labels = state.batch_get_item(0), state.batch_get_item(1)
        if event == Event.BEFORE_FORWARD:
            self.mixing = float(torch.rand((), generator=self._generator)) < self.p
            if self.mixing:
                height, width = images.shape[-2:]
                order, box = draw_cutmix(len(images), (height, width), self._generator)
                mixed = cutmix_batch(images, labels, bbox=box, indices=order.to(images.device))
                images, self._others, self._share, _ = mixed
                state.batch_set_item(0, images)
        else:
            outputs = state.outputs
            assert isinstance(outputs, torch.Tensor)  # a classifier's logits
            own, others = (ensure_targets_one_hot(outputs, target) for target in (labels, self._others))
            state.batch_set_item(1, self._share * own + (1 - self._share) * others)


def siamese_stream(seed: int, state: State) -> torch.Generator:
    """Returns the generator that :class:`SiameseAugmentation` uses for the present batch."""
    return keyed_generator(seed, dist.get_global_rank(), state.timestamp.batch.value)


def cutmix_stream(seed: int, state: State) -> torch.Generator:
    """Returns the generator that :class:`RandomCutMix` uses for the present batch: a different one, so that the two
    draw independently."""
    return keyed_generator(seed, dist.get_global_rank(), state.timestamp.batch.value, 1)
