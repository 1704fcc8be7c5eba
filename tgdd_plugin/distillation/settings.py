"""What a distillation does: every setting, its default, and where the default comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.beton.factors import MOST_PACKED
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import Count, Flag, Name, NonNegative, Seed, check_once, check_time, settings_class
from tgdd_plugin.distillation.budgets import sized, usual_factor

Start = Literal["real", "mix", "herding", "noise"]
Source = Literal["sampled", "exemplars", "recorded"]
Auto = Literal["auto"]
Schedule = Literal["constant", "linear"]

EARLIER: Mapping[str, Any] = {"schedule": "constant"}
"""What versions without a key for it did."""

FASTER = 5
"""A learning rate that falls to zero starts from this many times the published one."""


@settings_class
class DistillSettings:
    """What a distillation does. Defaults are the paper's (arXiv 2512.02469) unless they say otherwise.

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    source: Source | None = None
    """Where the real side of the matching comes from. sampled, as published: real images at every step. exemplars: the
    same with the few real images that the trajectory keeps. recorded: the class means that were recorded while
    training, so that no real image is read and a step costs its synthetic half alone. null: sampled if real images are
    given, else exemplars, or recorded where the trajectory has means and keeps fewer than 64 images of a class."""
    classes: Annotated[list[Name], Field(min_length=1)] | None = None
    """Names of the classes to distill, such as those that a continual learner has just met; the constraint keeps them
    apart from all classes that the network knows. Whole numbers are names; yes, no, 1.5 and 007 need quotes. null:
    all."""
    budget: Count | None = None
    """Image passes (images x epochs) of the trainings that the set is made for, such as 10000. It sizes the set: see
    images_per_class, factor, start, steps, schedule and alpha, each of which may be given beside it. Retraining then
    takes as many passes unless it says otherwise. null: a set of the published kind."""
    images_per_class: Count | None = None
    """Stored images of each class (the field's IPC). null: 10. For a budget a quarter of the passes, at most
    500 images, of all classes together up to 5,000 passes, 1,000 from 10,000 to 20,000, then a twentieth."""
    factor: Count | None = None
    """Factor f of multi-formation: each stored image holds f x f sub-images, which are enlarged when decoded. It must
    divide the side of the images. null: 2; 4 for one image of each class, from 28 pixels on; 1 for a budget, in
    replay, and for images whose side is below 16 pixels or odd."""
    start: Start | None = None
    """What the pixels start from. mix: every sub-image is a real image, shrunk; real: every stored image is a real one;
    herding: as mix, with the images that herding chooses by the features of the first run's last stage; noise: no real
    image. null: herding. The paper's is mix."""
    steps: Count | None = None
    """Optimizer steps on the pixels. null: 1,000, a tenth of the paper's, or 50 for a budget."""
    schedule: Schedule | None = None
    """How the learning rate goes on. constant: as published; linear: in a straight line down to 0, from a rate five
    times as high unless you give one, which learns more from a few hundred steps; the first rate counts for two
    steps. null: linear."""
    learning_rate: NonNegative | Auto | None = None
    """Learning rate of SGD on the pixels, the first one where the schedule is linear. auto: such that the first steps
    move the pixels as far as the published rate does with ConvNets, or five times as far. null: for ConvNets of this
    package 0.02 x images_per_class, from 128 pixels on 0.2 x images_per_class, or five times that; for other networks
    auto. That is twice the published rate: the published loop steps class after class with momentum 0.5, which moves
    every class by twice its gradient; one step for all classes without momentum does the same."""
    alpha: NonNegative | Auto | None = None
    """Weight of the distribution constraint; 0 leaves it out. auto: such that its gradient is as large beside the
    matching's as with ConvNets. null: for ConvNets of this package 2.5 up to 10 images per class, 0.5 above; for other
    networks auto; for a budget 10 up to 10,000 passes, 2.5 above."""
    stages: Literal["all", "first", "last"] = "all"
    """Under which stages features are matched: all, or, for comparison, the first or the last of each run."""
    max_gap: Count = 7
    """From how many stages the late one is drawn, the early one included (the paper's L)."""
    real_per_class: Count = 128
    """Real images of each class and step, at most as many as the largest class has. Images of smaller classes are
    repeated."""
    max_decoded: Count = 200
    """Most decoded synthetic images of a class and step; of more, as many are drawn."""
    augmentation: str | None = None
    """Augmentation in distillation: operations of color, crop, cutout, flip, scale and rotate joined by _, or none.
    Leave flip out where a mirrored image is of another class, as with digits. null: color_crop_cutout_flip, for
    exemplars without flip where the training is known to have had none; for the recorded source what the training was
    seen to do, since the means contain it (color_crop_flip if that is not known)."""
    ema: str | None = None
    """Half-life, as a Composer time string in batches such as 100ba, of an exponential moving average of the pixels,
    which is then what ships. null: the last iterate ships."""
    classes_per_chunk: Count | None = None
    """Classes in one forward and backward pass. Fewer need less memory and give the same images up to the order of
    float additions. null: sized to the caches of a CPU or the free memory of a GPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 for networks under autocast with the loss in float32."""
    compile: Flag | None = None
    """Build the networks' passes by torch.compile: half a minute at the start (on a CPU it needs a C++ compiler), then
    faster steps. null: if the job passes more than a million images of 32 pixels through a network."""
    packed: Flag = False
    """Write the images as stored, factor^2 times fewer. This package decodes them when reading; a stock ffcv.Loader
    cannot."""
    seed: Seed = 0
    """Seed of everything that a distillation draws."""

    def __post_init__(self) -> None:
        if self.packed and self.factor == 1:
            raise InputError(
                "`packed` must be false at factor 1, where images are stored decoded, got true. Leave it out."
            )
        if self.packed and (self.factor or 0) > MOST_PACKED:
            raise InputError(
                f"`factor` must be at most {MOST_PACKED} for packed images, got {self.factor}: a file that decodes to "
                f"more than {MOST_PACKED**2} times its size is taken for damaged. Lower it, or leave packed out."
            )
        check_once("classes", self.classes)
        if self.augmentation is not None:
            parse_augmentation(self.augmentation)
        if self.ema is not None:
            check_time("ema", self.ema, ["ba"])

    @property
    def reads_data(self) -> bool:
        """Whether a recipe's distillation reads the real images, and not the trajectory alone."""
        return self.source in (None, "sampled")

    def sized(self, classes: int, sides: int | Sequence[int] | None = None) -> SizedSettings:
        """These settings with the defaults filled in that a budget rules, or the size of the images.

        Args:
            classes: The number of classes to distill.
            sides: Side of the images in pixels, or both. Default: ``None``, where it is not known yet.
        """
        if self.budget:
            defaults = sized(self.budget, classes)
        else:
            defaults = {"factor": usual_factor(sides, self.images_per_class)}
        own = {name: value for name in self.__dataclass_fields__ if (value := getattr(self, name)) is not None}
        return SizedSettings(**{**defaults, **own})

    def resolved(
        self,
        sides: int | Sequence[int],
        *,
        classes: int = 10,
        source: Source = "sampled",
        trained_with: str | None = None,
        convnets: bool = True,
    ) -> SizedSettings:
        """These settings with the defaults filled in that depend on the job.

        Args:
            sides: Side of the images in pixels, or height and width.
            classes: The number of classes to distill; of no matter without a budget. Default: ``10``.
            source: The source where none was chosen. Default: ``'sampled'``.
            trained_with: The augmentation of the recorded training, if known.
            convnets: Whether the trajectory is of ConvNets of this package, which published rates suit.
        """
        own = self.sized(classes, sides)
        side = sides if isinstance(sides, int) else sides[0]
        times = FASTER if own.schedule == "linear" else 1
        rate: float | Auto = (0.2 if side >= 128 else 0.02) * times * own.images_per_class if convnets else "auto"
        alpha: float | Auto = (2.5 if own.images_per_class <= 10 else 0.5) if convnets else "auto"
        source = self.source or source
        augmentation = "color_crop_cutout_flip"
        if source == "recorded":
            augmentation = trained_with or "color_crop_flip"
        elif source == "exemplars" and trained_with and "flip" not in trained_with.split("_"):
            augmentation = "color_crop_cutout"  # a mirrored image may be of another class
        return replace(
            own,
            source=source,
            augmentation=augmentation if self.augmentation is None else self.augmentation,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            alpha=alpha if own.alpha is None or (self.alpha is None and not convnets) else own.alpha,
        )


@settings_class
class SizedSettings(DistillSettings):
    """The settings of a distillation whose size is settled: see :meth:`DistillSettings.sized`.

    The defaults are those where no budget is given: the size of the paper's first tables, and a tenth of its 10,000
    steps of a constant rate from any images. From herding's choice and by a rate that falls, these come close, by the
    figures in ``benchmarks/README.md``, and take minutes on a CPU.

    Raises:
        InputError: As :class:`DistillSettings`.
    """

    images_per_class: Count = 10
    factor: Count = 2
    start: Start = "herding"
    steps: Count = 1_000
    schedule: Schedule = "linear"

    @property
    def start_images(self) -> int:
        """The number of real images of each class that the pixels start from."""
        if self.start == "noise":
            return 0
        return self.images_per_class * (1 if self.start == "real" else self.factor**2)

    def sized_by(self, classes: int) -> int | None:
        """The budget, if the number of images of each class is what it makes of ``classes`` classes; else ``None``."""
        by_budget = sized(self.budget, classes) if self.budget else {}
        return self.budget if by_budget.get("images_per_class") == self.images_per_class else None
