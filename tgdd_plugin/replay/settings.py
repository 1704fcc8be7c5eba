"""How tasks are made and old ones replayed: every setting and its default."""

from __future__ import annotations

from typing import Literal

from tgdd_plugin.core.settings import Count, NonNegativeInt, Positive, Seed, Share, settings_class

PolicyName = Literal["random", "reservoir", "herding", "distilled"]


@settings_class
class ReplaySettings:
    """How tasks are made and old ones replayed.

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    tasks: Count = 5
    """Into how many tasks the classes are split, as evenly as may be."""
    order: Seed | None = None
    """Seed of the order of the classes. null: as the data has them."""
    ratio: Positive = 1.0
    """Images from the memory for each new image in a batch."""
    weight: Share | None = None
    """Share of the memory in the loss, from 0 to 1. null: every image counts alike."""
    finetune_epochs: NonNegativeInt = 0
    """Epochs of training on the memory alone after each task, once the memory has the task's classes, too: balanced
    fine-tuning (F. M. Castro et al., "End-to-End Incremental Learning", ECCV 2018), at a tenth of the training's
    learning rate as there. What tells a kept image from a new one is then no longer what tells old classes from new
    ones."""
    policy: PolicyName = "distilled"
    """What the memory keeps of a task, distill.images_per_class images of each class. random: real images, drawn;
    herding: real images that iCaRL's herding selects; reservoir: a uniform sample of all images so far, as many in all;
    distilled: images distilled as the section distill says."""
