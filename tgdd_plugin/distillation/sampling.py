"""Everything random about a distillation, as a function of (seed, step, rank): any step can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tgdd_plugin.augmentation.dsa import draw_augmentation
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.settings import SizedSettings
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages


@dataclass
class Draws:
    """Draws everything random about a step, as a batch that Composer splits by class and moves to the device.

    Without a pool the batch has no real images. Recorded means contain the augmentations of many images, so that every
    synthetic image then has an augmentation of its own.

    Args:
        settings: The resolved settings.
        bank: The stages to draw from.
        pool: The real images to draw from, or ``None``.
        synthetic: The synthetic images.
        rank: The rank of this process. Default: ``0``.
        classes: The class ids of the synthetic images. Default: ``None``, 0, 1, 2, ...
    """

    settings: SizedSettings
    bank: StageBank
    pool: ImagePool | None
    synthetic: SyntheticImages
    rank: int = 0
    classes: Sequence[int] | None = None

    def __call__(self, step: int, rank: int | None = None) -> dict[str, Any]:
        """Returns the batch of one step on this rank, or on another; see :meth:`DistillationModel.forward`."""
        s = self.settings
        assert s.augmentation is not None, "the settings must be resolved"
        generator = keyed_generator(s.seed, step, self.rank if rank is None else rank)
        pair = self.bank.draw(s.max_gap, generator)
        count, _, *_, height, width = self.synthetic.pixels.shape
        positions = torch.arange(count)
        classes = positions if self.classes is None else torch.tensor(self.classes)
        batch = {"positions": positions, "classes": classes, "early": pair.early, "late": pair.late}
        decoded = self.synthetic.decoded_per_class
        groups = min(decoded, s.max_decoded)
        if self.pool is not None:
            batch["real"] = draw_real(self.pool, classes, s.real_per_class, generator)
            groups = 1
        draw = draw_augmentation(s.augmentation, count * groups, (height, width), generator)
        if draw:  # an empty mapping is one that Composer cannot split into microbatches
            batch["draw"] = {name: values.unflatten(0, (count, groups)) for name, values in draw.items()}
        if decoded > s.max_decoded:
            order = torch.rand(count, decoded, generator=generator).argsort(1)
            batch["chosen"] = order[:, : s.max_decoded]
        return batch


def draw_real(pool: ImagePool, classes: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draws the real images of a step, ``(k, count)``: see :meth:`ImagePool.draw`, whose error it raises."""
    repeat = bool((pool.counts[classes] >= count).any())  # one rare class must not limit the others
    return pool.draw(classes, count, generator, "each step (real_per_class)", repeat=repeat)
