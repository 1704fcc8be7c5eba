"""Training augmentation as Composer algorithms: DSA for each image, and CutMix for some of the batches."""

from __future__ import annotations

import torch
from composer.algorithms import CutMix
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from tgdd_plugin.augment import augment, draw_augmentation, parse_augmentation
from tgdd_plugin.errors import InputError
from tgdd_plugin.randomness import keyed_generator


class SiameseAugmentation(Algorithm):
    """Augments every image of a training batch with a draw of its own (DSA; Zhao and Bilen, ICML 2021).

    Works on normalised images on the device, before the forward pass, in any Trainer. The draws of a batch depend on
    (seed, rank, batch) alone, so a resumed run makes those of an uninterrupted one.

    Args:
        strategy (str): Operations joined by ``_`` (see :mod:`tgdd_plugin.augment`). Default:
            ``'color_crop_flip'``; as in the literature, without ``cutout`` beside CutMix.
        seed (int): Of the draws. Default: ``0``.

    Example:
        >>> trainer = Trainer(model=model, ..., algorithms=[SiameseAugmentation()])  # doctest: +SKIP
    """

    def __init__(self, strategy: str = "color_crop_flip", seed: int = 0) -> None:
        parse_augmentation(strategy)
        if seed < 0:
            raise InputError(f"seed is {seed}; wanted 0 or more")
        self.strategy = strategy
        self.seed = seed
        self._generator = torch.Generator()

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BATCH_START, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BATCH_START:  # the microbatches of a batch share its stream
            self._generator = keyed_generator(self.seed, dist.get_global_rank(), state.timestamp.batch.value)
            return
        images = state.batch_get_item(0)
        draw = draw_augmentation(self.strategy, len(images), images.shape[2:], self._generator)
        draw = {name: tensor.to(images.device, non_blocking=True) for name, tensor in draw.items()}
        state.batch_set_item(0, augment(images, draw))


class RandomCutMix(CutMix):
    """Composer's CutMix, applied to a batch with probability ``p``; the literature's evaluation uses p = 0.5.

    Args:
        p (float): Default: ``0.5``.
        alpha (float): Of the Beta distribution of the areas. Default: ``1.0``.
    """

    def __init__(self, p: float = 0.5, alpha: float = 1.0) -> None:
        if not 0 <= p <= 1:
            raise InputError(f"p is {p}; wanted a share of batches from 0 to 1")
        super().__init__(alpha=alpha)
        self.p = p
        self.mixing = False  # whether the batch at hand is mixed

    def match(self, event: Event, state: State) -> bool:
        if event == Event.BEFORE_FORWARD:
            # From torch's global stream, as Composer's own draws: the Trainer seeds it and its checkpoints restore it.
            self.mixing = bool(torch.rand(()) < self.p)
        return self.mixing and super().match(event, state)
