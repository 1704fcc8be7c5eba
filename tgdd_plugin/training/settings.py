"""How a network is trained: every setting and its default."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.errors import InputError


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained: SGD with DSA and CutMix, as dataset-distillation papers do (IDC, DANCE, TGDD).

    Args:
        epochs: Default: ``60``, the paper's number for recording.
        batch_size: Default: ``64``.
        learning_rate: Falls to a fifth at 2/3 and again at 5/6 of training. Default: ``0.01``.
        momentum: Default: ``0.9``.
        weight_decay: Default: ``5e-4``.
        augmentation: Of each image, see :mod:`tgdd_plugin.augmentation.dsa`. Default: ``'color_crop_flip'``.
        cutmix: Share of batches under CutMix. Default: ``0.5``.

    Raises:
        InputError: For a value out of range.
    """

    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: str = "color_crop_flip"
    cutmix: float = 0.5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; wanted at least 1")
        for name in ("learning_rate", "momentum", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} is {getattr(self, name)}; wanted a number from 0 on")
        if not 0 <= self.cutmix <= 1:
            raise InputError(f"cutmix is {self.cutmix}; wanted a share of batches from 0 to 1")
        parse_augmentation(self.augmentation)
