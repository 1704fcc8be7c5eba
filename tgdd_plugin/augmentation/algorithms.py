"""Training augmentation as Composer algorithms: DSA for each image, and CutMix for some of the batches.

Each has its functional form first, as Composer's algorithms do. What an algorithm draws for a batch depends on (seed,
rank, batch) alone: a resumed run makes the draws of an uninterrupted one, and whatever else draws has no part in it.
"""

from __future__ import annotations

import torch
from composer.core import Algorithm, Event, State
from composer.functional import cutmix_batch
from composer.loggers import Logger
from composer.loss.utils import ensure_targets_one_hot
from composer.utils import dist

from tgdd_plugin.augmentation.dsa import augment, draw_augmentation
from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.seeding import keyed_generator


def siamese_batch(images: torch.Tensor, strategy: str, generator: torch.Generator) -> torch.Tensor:
    """Augments every image with a draw of its own (DSA; Zhao and Bilen, ICML 2021), differentiably.

    Args:
        images: Normalised, ``(N, C, H, W)``, on any device.
        strategy: Operations joined by ``_``, see :mod:`tgdd_plugin.augmentation.dsa`.
        generator: On the CPU.

    Returns:
        Images of the same shape.
    """
    height, width = images.shape[-2:]
    draw = draw_augmentation(strategy, len(images), (height, width), generator)
    return augment(images, {name: tensor.to(images.device, non_blocking=True) for name, tensor in draw.items()})


def draw_cutmix(count: int, size: tuple[int, int], generator: torch.Generator) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Draws what CutMix (Yun et al., ICCV 2019) needs for one batch, with its α = 1: a uniform share of the area.

    Args:
        count: N.
        size: (H, W).
        generator: On the CPU.

    Returns:
        Which image each one is mixed with, ``(N,)``, and the box (top, left, bottom, right) that comes from it: its
        centre lies anywhere, and what of it falls outside is cut off. Both as ``composer.functional.cutmix_batch``
        takes them.
    """
    order = torch.randperm(count, generator=generator)
    share, *centre = torch.rand(3, generator=generator).tolist()
    half = [side * share**0.5 / 2 for side in size]
    low = [max(0, round(c * side - h)) for c, side, h in zip(centre, size, half, strict=True)]
    high = [min(side, round(c * side + h)) for c, side, h in zip(centre, size, half, strict=True)]
    return order, (*low, *high)


class SiameseAugmentation(Algorithm):
    """Augments every image of a training batch with a draw of its own; see :func:`siamese_batch`.

    Works on normalised images on the device, before the forward pass, in any Trainer, also beside Composer's CutMix or
    MixUp.

    Args:
        strategy (str): Operations joined by ``_`` (see :mod:`tgdd_plugin.augmentation.dsa`). Default:
            ``'color_crop_flip'``; as in the literature, without ``cutout`` beside CutMix.
        seed (int): Of the draws. Default: ``0``.

    Example:
        >>> trainer = Trainer(model=model, ..., algorithms=[SiameseAugmentation()])  # doctest: +SKIP
    """

    def __init__(self, strategy: str = "color_crop_flip", seed: int = 0) -> None:
        parse_augmentation(strategy)
        _check_seed(seed)
        self.strategy = strategy
        self.seed = seed
        self._generator = torch.Generator()

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BATCH_START, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BATCH_START:  # the microbatches of a batch share its stream
            self._generator = siamese_stream(self.seed, state)
        else:
            state.batch_set_item(0, siamese_batch(state.batch_get_item(0), self.strategy, self._generator))


class RandomCutMix(Algorithm):
    """CutMix with probability ``p`` for each batch (microbatch); the literature's evaluation uses p = 0.5.

    Args:
        p (float): Default: ``0.5``.
        seed (int): Of the draws. Default: ``0``.
    """

    def __init__(self, p: float = 0.5, seed: int = 0) -> None:
        if not 0 <= p <= 1:
            raise InputError(f"p is {p}; wanted a share of batches from 0 to 1")
        _check_seed(seed)
        self.p = p
        self.seed = seed
        self.mixing = False  # whether the batch at hand is mixed
        self._generator = torch.Generator()
        self._others, self._share = torch.empty(0), 1.0

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BATCH_START, Event.BEFORE_FORWARD) or (event == Event.BEFORE_LOSS and self.mixing)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BATCH_START:
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
    """The stream that :class:`SiameseAugmentation` draws a batch from."""
    return keyed_generator(seed, dist.get_global_rank(), state.timestamp.batch.value)


def cutmix_stream(seed: int, state: State) -> torch.Generator:
    """The stream that :class:`RandomCutMix` draws a batch from: another one, lest its draws follow the other's."""
    return keyed_generator(seed, dist.get_global_rank(), state.timestamp.batch.value, 1)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"seed is {seed}; wanted 0 or more")
