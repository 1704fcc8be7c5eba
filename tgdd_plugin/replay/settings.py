"""How tasks are made and old ones replayed: every setting and its default."""

from __future__ import annotations

from dataclasses import dataclass

from tgdd_plugin.core.errors import InputError


@dataclass(frozen=True)
class ReplaySettings:
    """How tasks are made and old ones replayed.

    Args:
        tasks: Into how many the classes are split, as evenly as may be. Default: ``5``.
        order: Seed of the order of the classes. Default: ``None``, as the data has them.
        ratio: Images from the memory for each new one in a batch. Default: ``1.0``.
        weight: Share of the memory in the loss, from 0 to 1. Default: ``None``, every image counts alike.
        tune: Epochs of training on the memory alone once it has the task's classes, too: balanced fine-tuning (F. M.
            Castro et al., "End-to-End Incremental Learning", ECCV 2018), the learning rate a tenth of the training's,
            as there. What tells a kept image from a new one (a synthetic look, above all) is then no longer what tells
            old classes from new ones. Default: ``0``.

    Raises:
        InputError: For a value out of range.
    """

    tasks: int = 5
    order: int | None = None
    ratio: float = 1.0
    weight: float | None = None
    tune: int = 0

    def __post_init__(self) -> None:
        if self.tasks < 1 or (self.order is not None and self.order < 0):
            raise InputError(f"tasks is {self.tasks} and order {self.order}; wanted at least 1 and 0")
        if self.tune < 0:
            raise InputError(f"tune is {self.tune}; wanted a number of epochs, or 0 for none")
        if not 0 < self.ratio < float("inf") or not 0 <= (self.weight or 0) <= 1:
            raise InputError(f"ratio is {self.ratio} and weight {self.weight}; wanted above 0, and from 0 to 1")
