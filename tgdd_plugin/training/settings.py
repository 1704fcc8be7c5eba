"""How a network is trained: every setting and its default."""

from __future__ import annotations

from typing import Literal

from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.settings import Count, Flag, NonNegative, Share, settings_class

Schedule = Literal["steps", "one-cycle"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto"] | Flag


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
    """Highest learning rate of SGD."""
    momentum: NonNegative = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of SGD."""
    augmentation: str = "color_crop_flip"
    """Augmentation of each image: operations of color, crop, cutout, flip, scale and rotate joined by _, or none."""
    cutmix: Share = 0.5
    """Share of the batches that CutMix mixes, from 0 to 1."""

    passes: Count | None = None
    """Image passes (images x epochs) in place of epochs; the last epoch may be cut short. null: as epochs say."""
    schedule: Schedule = "steps"
    """How the learning rate goes. steps: constant, a fifth from 2/3 and again from 5/6 of training on, as in
    dataset-distillation papers; one-cycle: from 0 up to learning_rate in the first 30 %, then down to 0, both in
    straight lines."""
    nesterov: Flag = False
    """Whether the momentum is Nesterov's."""
    label_smoothing: Share = 0.0
    """Share of each label that is spread evenly over all classes (Szegedy et al., CVPR 2016)."""
    precision: Precision = "auto"
    """Precision of the forward passes; weights and the loss are float32 in each. fp32; bf16, by autocast; auto: what a
    few timed steps show to be faster, on a CPU only where torch.compile is used."""
    compile: Compile = "auto"
    """Build the passes by torch.compile, which takes up to half a minute for an architecture (on a CPU it needs a C++
    compiler). auto: in trainings of more than a minute, where a few timed steps show it to be faster."""

    def __post_init__(self) -> None:
        parse_augmentation(self.augmentation)
