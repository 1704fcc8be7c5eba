"""How compact sets are retrained on and compared: every setting and its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.differences import with_later_settings
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import (
    Count,
    Flag,
    NonNegative,
    NonNegativeInt,
    Positive,
    Share,
    check_once,
    settings_class,
)
from tgdd_plugin.training.protocols import FAST_EPOCHS, PAPER_EPOCHS, Protocol, fast, paper
from tgdd_plugin.training.settings import Compile, Precision, TrainSettings

Baseline = Literal["random", "herding", "k-center", "confidence", "distribution matching"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


@settings_class
class RetrainSettings:
    """How networks are trained on a compact set, and what stands beside them.

    Raises:
        InputError: For an unknown key, a value of the wrong type or out of range, or both passes and epochs.
    """

    epochs: Count | None = None
    """Training epochs on the compact set. Under fast the other rows have as many passes as that; under paper, random
    images have as many epochs. null: 150 under fast, 1500 under paper (the paper's at 32 pixels)."""
    batch_size: Count | None = None
    """Images in a batch. null: 8 to 64 under fast, rising with the passes; 64 under paper."""
    learning_rate: NonNegative | None = None
    """Highest learning rate of SGD. null: 0.05 under fast, 0.01 under paper."""
    momentum: NonNegative = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of SGD."""
    augmentation: str = "color_crop_flip"
    """Augmentation of each image: operations of color, crop, cutout, flip, scale and rotate joined by _, or none."""
    cutmix: Share | None = None
    """Share of the batches that CutMix mixes, from 0 to 1. null: 0 under fast, 0.5 under paper."""
    seeds: Count = 3
    """How many networks are trained for each row of the table, and how many random subsets are drawn."""
    full_epochs: NonNegativeInt = 60
    """Training epochs on the full data; 0 leaves that row out."""
    at_once: Flag | None = None
    """Train a row's networks all at once, to the same result up to rounding, but for layers that draw random numbers
    (dropout), which draw others then; null: where a few steps show that to be faster, and never with such layers."""
    protocol: Protocol = "fast"
    """How networks are trained, but for what other keys say. fast: a short one-cycle schedule made for the number of
    passes, the same for every row; paper: as dataset-distillation papers do, for figures beside published ones."""
    passes: Count | None = None
    """Image passes (images x epochs) of a training, the same for every row, up to the last batch, which is whole; no
    batch has more. null: as epochs say, and under fast, where those are null too, as many as the set was made for
    (distill.budget)."""
    mix: Share = 0.0
    """Share of the passes on the set in one more row, whose other passes are on real images. 0: no such row."""
    precision: Precision = "auto"
    """As record.precision."""
    compile: Compile = "auto"
    """As record.compile."""

    def __post_init__(self) -> None:
        parse_augmentation(self.augmentation)
        if self.passes is not None and self.epochs is not None:
            raise InputError(
                f"`passes` must be null where epochs are given ({self.epochs}), got {self.passes}. Leave one out (a "
                f"recipe's epochs by retrain.epochs=null)."
            )

    def training(self, images: int) -> TrainSettings:
        """How networks are trained on a compact set of ``images`` images, decoded, and on what stands beside it."""
        if self.passes is not None:
            return self._settings(self.passes, passes=self.passes)
        epochs = self.epochs or (FAST_EPOCHS if self.protocol == "fast" else PAPER_EPOCHS)
        if self.protocol == "fast":
            return self._settings(epochs * images, passes=epochs * images)
        return self._settings(epochs * images, epochs=epochs)

    def made_for(self, budget: Any, images: int) -> RetrainSettings:
        """These settings for a set that was made for a budget, whose passes they take where they name no length.

        Args:
            budget: What the set's card says, which may be anything; more passes than the paper's are passed over.
            images: The number of images of the set, decoded.
        """
        if self.protocol != "fast" or self.passes or self.epochs or type(budget) is not int:
            return self
        return replace(self, passes=budget) if 1 <= budget <= PAPER_EPOCHS * images else self

    def at_equal_passes(self, images: int) -> TrainSettings:
        """How networks are trained on all real images for as many passes as on a compact set of ``images`` images."""
        how = self.training(images)
        return how if how.passes else replace(how, passes=how.epochs * images)

    def filled(self) -> RetrainSettings:
        """These settings with what the paper's protocol says in place of null; under fast it depends on the passes."""
        if self.protocol == "fast":
            return self
        epochs = None if self.passes else self.epochs or PAPER_EPOCHS
        usual = {name: value for name, value in paper().items() if getattr(self, name, 0) is None}
        return replace(self, epochs=epochs, **usual)

    @staticmethod
    def completed(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as an earlier version noted them, with what it had no key for: its protocol was the paper's.

        Where the protocols differ, everything else is as in ``now``: the other differences follow from that one.
        """
        protocol = {"protocol": earlier.get("protocol", "paper")}
        same = protocol["protocol"] == now.get("protocol")
        return with_later_settings({**earlier, **protocol} if same else protocol, now)

    def full_training(self, images: int) -> TrainSettings:
        """How networks are trained for ``full_epochs`` on all real images, of which there are ``images``."""
        return self._settings(self.full_epochs * images, epochs=self.full_epochs)

    def _settings(self, budget: int, **length: int) -> TrainSettings:
        usual = fast(budget) if self.protocol == "fast" else paper()
        own = {name: getattr(self, name) for name in TrainSettings.__dataclass_fields__ if hasattr(self, name)}
        given = {name: value for name, value in own.items() if value is not None and name not in ("epochs", "passes")}
        how = TrainSettings(**{**usual, **given, **length})
        return replace(how, batch_size=min(how.batch_size, budget))


@settings_class
class EvaluateSettings:
    """What stands beside a compact set; networks are trained as :class:`RetrainSettings` says.

    Raises:
        InputError: For an unknown key, a value of the wrong type or out of range, or a value given twice.
    """

    baselines: list[Baseline] = field(default_factory=lambda: list(BASELINES))
    """Sets of as many images as the file stores: random ones; herding and k-center, chosen by the features of networks
    trained on the full data; confidence, those of which the recorded networks' confidence varies most (CAD), where a
    trajectory of two stages or more is at hand; and plain distribution matching."""
    networks: list[str] = field(default_factory=lambda: ["resnet10", "resnet18", "densenet121", "vit"])
    """Other architectures that the set and random images are tried on: names of this package's networks, or
    module:function."""
    soft_labels: Flag = True
    """Also try the soft labels of the trajectory's last stages, where the trajectory is at hand."""
    worth: Flag = True
    """How many random images the set is worth at equal passes: twice as many random images as stored, and so on, until
    they reach its accuracy or a class has no more."""
    learning_rates: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Learning rates to choose from for each row, on a tenth of the training images that is held out for it; null: the
    learning rate of retrain for all rows."""

    def __post_init__(self) -> None:
        check_once("baselines", self.baselines)
        check_once("networks", self.networks)
