"""What a set is sized to: the image passes of the trainings that it is made for."""

from __future__ import annotations

from typing import Any

EPOCHS, LEAST_EPOCHS = 20, 4
"""Epochs that a budget leaves for each image, and for those of a small set."""

SMALL = 500
"""Images of a small set, which short trainings learn more from than from fewer images seen more often."""

SHORT = 10_000
"""Passes up to which it pays to keep the classes further apart than the paper does."""


def published() -> dict[str, Any]:
    """The size of a set where no budget is given: that of the paper's first tables."""
    return {"images_per_class": 10, "factor": 2, "start": "mix", "steps": 10_000}


def sized(passes: int, classes: int) -> dict[str, Any]:
    """The size of a set for a budget, and how it is distilled.

    The rule was chosen on held-out training images of Fashion-MNIST and CIFAR-10, whose figures are in
    ``benchmarks/README.md``.

    Args:
        passes: Images x epochs of the trainings.
        classes: The number of classes to distill.
    """
    images = max(passes / EPOCHS, min(SMALL, passes / LEAST_EPOCHS))
    return {
        "images_per_class": max(1, round(images / classes)),
        "factor": 1,
        "start": "herding",
        "steps": 50,
        "alpha": 10.0 if passes <= SHORT else 2.5,
    }
