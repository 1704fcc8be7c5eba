"""What a set is sized to: the image passes of the trainings that it is made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FEWEST, MORE = 500, 1000
"""Images of a set for short trainings, and for those of 10,000 to 20,000 passes, which learn more from more images."""

SHORT = 10_000
"""Passes up to which it pays to keep the classes further apart than the paper does."""


SMALL = 16
"""Pixels below which the side of an image is too short to be halved, by the figures in ``benchmarks/README.md``."""


QUARTERED = 28
"""Pixels from which on the side of an image can be divided by four, likewise."""


def usual_factor(sides: int | Sequence[int] | None = None, images_per_class: int | None = None) -> int:
    """The factor of a set where neither a budget nor a factor is given.

    Args:
        sides: Side of the images in pixels, or both. Default: ``None``, where it is not known yet, as if it was an
            ordinary one.
        images_per_class: The number of images of each class that was asked for. Default: ``None``, none was.
    """
    both = [sides] if isinstance(sides, int) else list(sides or ())
    if images_per_class == 1 and both and all(side >= QUARTERED and side % 4 == 0 for side in both):
        return 4  # sixteen small images teach more than four
    return 2 if all(side >= SMALL and side % 2 == 0 for side in both) else 1


def sized(passes: int, classes: int) -> dict[str, Any]:
    """The size of a set for a budget, and how it is distilled.

    The rule was chosen on held-out training images of Fashion-MNIST and CIFAR-10, whose figures are in
    ``benchmarks/README.md``.

    Args:
        passes: Images x epochs of the trainings.
        classes: The number of classes to distill.
    """
    # Each is seen 4, then 10, then 20 times; between those the number stays.
    images = max(min(passes / 4, FEWEST), min(passes / 10, MORE), passes / 20)
    return {
        "images_per_class": max(1, round(images / classes)),
        "factor": 1,
        "start": "herding",
        "steps": 50,
        "schedule": "linear",
        "alpha": 10.0 if passes <= SHORT else 2.5,
    }
