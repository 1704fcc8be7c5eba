"""How a network is trained: every setting and its default."""

from __future__ import annotations

from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.settings import Count, NonNegative, Share, settings_class


@settings_class
class TrainSettings:
    """How a network is trained: SGD with DSA and CutMix, as dataset-distillation papers do (IDC, DANCE, TGDD).

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    epochs: Count = 60
    """Training epochs. The paper records 60, and 80 at 128 pixels."""
    batch_size: Count = 64
    """Images in a batch."""
    learning_rate: NonNegative = 0.01
    """Initial learning rate of SGD. It falls to a fifth at 2/3 and again at 5/6 of training."""
    momentum: NonNegative = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of SGD."""
    augmentation: str = "color_crop_flip"
    """Augmentation of each image: operations of color, crop, cutout, flip, scale and rotate joined by _, or none."""
    cutmix: Share = 0.5
    """Share of the batches that CutMix mixes, from 0 to 1."""

    def __post_init__(self) -> None:
        parse_augmentation(self.augmentation)
