"""What a distillation does: every setting, its default, and where the default comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from composer.core import Time, TimeUnit

from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.errors import InputError

STARTS = ("real", "mix", "herding", "noise")

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "source": (None, "sampled", "recorded"),
    "start": STARTS,
    "stages": ("all", "first", "last"),
    "precision": ("fp32", "bf16"),
}


@dataclass(frozen=True)
class DistillSettings:
    """What a distillation does. Defaults are the paper's (arXiv 2512.02469) unless they say otherwise.

    Args:
        source: Where the real side of the matching comes from. ``'sampled'``, as published: real images, at every step.
            ``'recorded'``: the class means that the callback recorded while training, so that no real image is read
            and a step costs its synthetic half alone. Default: ``None``, sampled if real images are given.
        classes: Names of the classes to distill, such as those that a continual learner has just met; the constraint
            keeps them apart from all that the network knows. Default: ``None``, all.
        images_per_class: n, stored images for each class. Default: ``10``.
        factor: f of multi-formation: each stored image holds f×f sub-images, enlarged when decoded. Default: ``2``.
        start: ``'mix'``, ``'real'`` or ``'noise'``, see :func:`tgdd_plugin.distillation.synthetic_images.start_pixels`; ``'herding'``: as
            ``'mix'``, but in place of any real images those that herding chooses by the features of the first run's
            last stage. Default: ``'mix'``.
        steps: Default: ``10_000``.
        learning_rate: Of SGD on the pixels. Default: ``0.02 · images_per_class``, and ``0.2 · images_per_class`` from
            128 px on. That is twice the published rates: the published loop steps class after class with momentum 0.5,
            which moves every class by twice its gradient; one step for all classes without momentum does the same.
        alpha: α, weight of the constraint; 0 leaves it out. Default: ``2.5`` up to 10 images per class, ``0.5`` above.
        stages: Which stages features are matched under: ``'all'``, or, to see what they are worth, the ``'first'``
            or the ``'last'`` of each run. Default: ``'all'``.
        max_gap: L, how many stages the late one is drawn from, the early one included. Default: ``7``.
        real_per_class: Real images of each class and step. Default: ``128``.
        max_decoded: Most decoded synthetic images of a class and step; of more, as many are drawn. Default: ``200``.
        augmentation: Operations joined by ``_`` (see :mod:`tgdd_plugin.augmentation.dsa`). Leave ``flip`` out where mirrored
            images change class, as with digits. Default: ``None``, which is ``'color_crop_cutout_flip'`` for the source
            ``'sampled'``, and for ``'recorded'`` what the training was seen to do, as the means contain it
            (``'color_crop_flip'`` if that is not known).
        ema: Half-life, as a Composer time string in batches (``'100ba'``), of an exponential moving average of the
            pixels, which then is what ships. Default: ``None``, the last iterate ships.
        classes_per_chunk: Classes in one forward and backward pass; fewer need less memory and give the same images,
            up to the order of float additions. Default: ``None``, sized to the caches of a CPU, or to the free memory
            of a GPU. A chunk that does not fit is halved.
        precision: ``'fp32'``, or ``'bf16'`` for networks in autocast with the loss in float32. Default: ``'fp32'``.
        compile: Whether ``torch.compile`` builds the networks' passes: half a minute at the start (on a CPU it needs a
            C++ compiler), then faster steps. Default: ``None``, if the job passes more than a million images of 32 px
            through a network.
        packed: Whether the file holds the images as stored, factor² times fewer. This package decodes them on reading;
            a stock ``ffcv.Loader`` cannot. Default: ``False``, it holds them decoded.
        seed: Of every draw. Default: ``0``.

    Raises:
        InputError: For a value out of range.
    """

    source: str | None = None
    classes: list[str] | None = None
    images_per_class: int = 10
    factor: int = 2
    start: str = "mix"
    steps: int = 10_000
    learning_rate: float | None = None
    alpha: float | None = None
    stages: str = "all"
    max_gap: int = 7
    real_per_class: int = 128
    max_decoded: int = 200
    augmentation: str | None = None
    ema: str | None = None
    classes_per_chunk: int | None = None
    precision: str = "fp32"
    compile: bool | None = None
    packed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (
            "images_per_class",
            "factor",
            "steps",
            "max_gap",
            "real_per_class",
            "max_decoded",
            "classes_per_chunk",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; wanted at least 1")
        if self.packed and self.factor == 1:
            raise InputError("packed has no effect at factor 1, where images are stored as they are; leave it out")
        if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
            raise InputError(f"classes is {self.classes}; wanted names, each of them once, or nothing for all")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; wanted 0 or more")
        for name in ("learning_rate", "alpha"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; wanted a number from 0 on")
        for name, wanted in _CHOICES.items():
            if getattr(self, name) not in wanted:
                raise InputError(f"{name} is '{getattr(self, name)}'; wanted one of {', '.join(filter(None, wanted))}")
        if self.augmentation is not None:
            parse_augmentation(self.augmentation)
        if self.ema is not None:
            _check_batches("ema", self.ema)

    def resolved(self, side: int, *, sampled: bool = True, trained_with: str | None = None) -> DistillSettings:
        """With the defaults filled in that depend on the job.

        Args:
            side: Of the images, in pixels.
            sampled: Whether real images are at hand.
            trained_with: The augmentation of the recorded training, if known.
        """
        rate = (0.2 if side >= 128 else 0.02) * self.images_per_class
        alpha = 2.5 if self.images_per_class <= 10 else 0.5
        source = self.source or ("sampled" if sampled else "recorded")
        augmentation = "color_crop_cutout_flip" if source == "sampled" else trained_with or "color_crop_flip"
        return replace(
            self,
            source=source,
            augmentation=augmentation if self.augmentation is None else self.augmentation,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            alpha=alpha if self.alpha is None else self.alpha,
        )


def _check_batches(name: str, value: str) -> None:
    """Raises an InputError unless ``value`` is a Composer time string in batches."""
    try:
        time = Time.from_input(value)
        if time.unit is TimeUnit.BATCH and time.value > 0:
            return
    except (ValueError, TypeError, RuntimeError):
        pass
    raise InputError(f"{name} is {value!r}; wanted a Composer time string in batches, for example '100ba'")
