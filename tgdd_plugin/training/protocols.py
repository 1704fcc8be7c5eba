"""How networks are trained on a set: the published way, and one that is made for a budget of image passes."""

from __future__ import annotations

from typing import Any, Literal

Protocol = Literal["fast", "paper"]

PAPER_EPOCHS, FAST_EPOCHS = 1500, 150
"""Epochs on a compact set where neither epochs nor passes are given: the paper's at 32 pixels, and a tenth of them."""


def paper() -> dict[str, Any]:
    """The training settings of dataset-distillation papers (IDC, DANCE, TGDD)."""
    return {
        "batch_size": 64,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "cutmix": 0.5,
        "label_smoothing": 0.0,
        "schedule": "steps",
    }


def fast(passes: int) -> dict[str, Any]:
    """The training settings for a budget, the same for distilled, random and all images.

    They were chosen once, on held-out training images of Fashion-MNIST and CIFAR-10 at 2,000 and 10,000 passes, and
    looked at up to 60,000: ``benchmarks/README.md``. Batches are as many images as √passes / 6, as a power of two.

    Args:
        passes: Images x epochs.
    """
    return {
        "batch_size": 8 if passes <= 5_000 else 16 if passes <= 20_000 else 32 if passes <= 80_000 else 64,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "cutmix": 0.0,
        "label_smoothing": 0.1,
        "schedule": "one-cycle",
    }
