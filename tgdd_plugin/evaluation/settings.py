"""How compact sets are retrained on and compared: every setting and its default."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, get_args

from pydantic import Field

from tgdd_plugin.core.settings import Count, Flag, NonNegativeInt, Positive, check_once, settings_class
from tgdd_plugin.training.settings import TrainSettings

Selection = Literal["herding", "k-center"]
"""Ways to choose real images by the features of networks trained on the full data."""
Baseline = Literal["random", "herding", "k-center", "distribution matching"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


@settings_class
class RetrainSettings(TrainSettings):
    """How networks are trained on a compact set, and what stands beside them.

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    epochs: Count = 1500
    """Training epochs on the compact set and on as many random images. The paper uses 1500 at 32 pixels."""
    seeds: Count = 3
    """How many networks are trained for each row of the table, and how many random subsets are drawn."""
    full_epochs: NonNegativeInt = 60
    """Training epochs on the full data; 0 leaves that row out."""
    at_once: Flag | None = None
    """Train a row's networks all at once, to the same result up to rounding; null: where a few steps show that to be
    faster."""

    def training(self, epochs: int) -> TrainSettings:
        """The training part of these settings, with another number of epochs."""
        names = TrainSettings.__dataclass_fields__
        return TrainSettings(**{**{name: getattr(self, name) for name in names}, "epochs": epochs})


@settings_class
class EvaluateSettings:
    """What stands beside a compact set; networks are trained as :class:`RetrainSettings` says.

    Raises:
        InputError: For an unknown key, a value of the wrong type or out of range, or a value given twice.
    """

    baselines: list[Baseline] = field(default_factory=lambda: list(BASELINES))
    """Sets of as many images as the file stores: random ones; herding and k-center, chosen by the features of networks
    trained on the full data; and plain distribution matching."""
    networks: list[str] = field(default_factory=lambda: ["resnet10", "resnet18", "densenet121", "vit"])
    """Other architectures that the set and random images are tried on: names of this package's networks, or
    module:function."""
    soft_labels: Flag = True
    """Also try the soft labels of the trajectory's last stages, where the trajectory is at hand."""
    learning_rates: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Learning rates to choose from for each row, on a tenth of the training images that is held out for it; null: the
    learning rate of retrain for all rows."""

    def __post_init__(self) -> None:
        check_once("baselines", self.baselines)
        check_once("networks", self.networks)
