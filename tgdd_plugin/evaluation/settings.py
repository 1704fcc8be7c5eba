"""How compact sets are retrained on and compared: every setting and its default."""

from __future__ import annotations

from dataclasses import dataclass, field

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.training.settings import TrainSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """What stands beside a compact set.

    Args:
        baselines: Of :data:`BASELINES`, each with as many images as the file stores. ``herding`` and ``k-center``
            choose real images by the features of networks trained on the full data. Default: all.
        networks: Other architectures that the set and random images are tried on: factories as in
            :func:`tgdd_plugin.networks.factory.find_factory`. Default: those the literature has.
        soft_labels: Whether the set and random images are tried with the trajectory's soft labels too. Default:
            ``True``, if there is a trajectory.
        learning_rates: To choose from, for each row, on a tenth of the real training images that is held out for it.
            Default: ``None``, the training settings' own for all.

    Raises:
        InputError: For an unknown baseline, a network given twice, or a rate that is no positive number.
    """

    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    networks: list[str] = field(default_factory=lambda: ["resnet10", "resnet18", "densenet121", "vit"])
    soft_labels: bool = True
    learning_rates: list[float] | None = None

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                raise InputError(f"baselines has '{name}'; known are {', '.join(BASELINES)}")
        for name, values in (("baselines", self.baselines), ("networks", self.networks)):
            if len(set(values)) < len(values):
                raise InputError(f"{name} is {values}; wanted each of them once")
        if self.learning_rates is not None and not (self.learning_rates and min(self.learning_rates) > 0):
            raise InputError(f"learning_rates is {self.learning_rates}; wanted numbers above 0, or nothing")


@dataclass(frozen=True)
class RetrainSettings(TrainSettings):
    """How networks are trained on a compact set, and what stands beside them.

    Args:
        epochs: On the compact set and on random images. Default: ``1500``, the paper's at 32 px.
        seeds: Networks trained for each row, and random subsets drawn. Default: ``3``.
        full_epochs: Of training on the full data; 0 leaves that row out. Default: ``60``, the paper's.
        at_once: Whether a row's networks are trained all at once, to the same result up to rounding. Default: ``None``,
            if that is found to be faster in a few steps.
    """

    epochs: int = 1500
    seeds: int = 3
    full_epochs: int = 60
    at_once: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1 or self.full_epochs < 0:
            raise InputError(f"seeds is {self.seeds} and full_epochs {self.full_epochs}; wanted at least 1 and 0")

    def training(self, epochs: int) -> TrainSettings:
        """The training part, for another number of epochs."""
        names = TrainSettings.__dataclass_fields__
        return TrainSettings(**{**{name: getattr(self, name) for name in names}, "epochs": epochs})


SELECTIONS = ("herding", "k-center")
"""Ways to choose real images by the features of networks trained on the full data."""

BASELINES = ("random", *SELECTIONS, "distribution matching")
