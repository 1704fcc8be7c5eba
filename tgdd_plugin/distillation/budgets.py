"""What a set is sized to: the image passes of the trainings that it is made for."""

from __future__ import annotations

from typing import Any

EPOCHS = 20
"""Epochs that a budget leaves for each image. Of fewer images there is less to learn; of more, each is seen too rarely
for what distilling put into it."""


def published() -> dict[str, Any]:
    """The size of a set where no budget is given: that of the paper's first tables."""
    return {"images_per_class": 10, "factor": 2, "start": "mix", "steps": 10_000}


def sized(passes: int, classes: int) -> dict[str, Any]:
    """The size of a set for a budget, with what then trains fastest.

    It was chosen on held-out training images of Fashion-MNIST and CIFAR-10: ``benchmarks/README.md``.

    Args:
        passes: Images x epochs of the trainings.
        classes: The number of classes to distill.
    """
    return {
        "images_per_class": max(1, round(passes / classes / EPOCHS)),
        "factor": 1,
        "start": "herding",
        "steps": 50,
        "alpha": 2.5,
    }
