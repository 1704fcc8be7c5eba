"""The targets of a training batch: class ids, or shares of the classes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

TOLERANCE = 1e-6
"""The largest difference at which shares of a soft label count as equal."""


def single_class_targets(
    targets: Shaped[Tensor, "N *_"], num_classes: int
) -> tuple[Int64[Tensor, "N"], Bool[Tensor, "N"]]:
    """Returns the class of each image, and whether the image belongs to that class alone.

    A soft label is of a single class if all its shares but the largest are equal: one-hot, or smoothed. With two
    classes, only a one-hot label is: a smoothed one could also be a mixed one. A class outside 0..K-1, such as -100,
    counts as no class.

    Args:
        targets: Class ids ``(N,)`` or ``(N, 1)``, or shares ``(N, K)`` with K at least 2, which may be whole numbers or
            truth values: one-hot.
        num_classes: The number of classes K.

    Returns:
        Class ids in 0..K-1, int64 of shape ``(N,)``, and bools of shape ``(N,)``, both on the device of the targets.

    Example:
        >>> ids, single = single_class_targets(torch.tensor([[0.1, 0.8, 0.1], [0.5, 0.5, 0.0]]), 3)
        >>> single  # smoothed, and a mixture of two
        tensor([ True, False])
    """
    if are_class_ids(targets):
        targets = targets.flatten().long()
        inside = (targets >= 0) & (targets < num_classes)
        return targets.clamp(0, num_classes - 1), inside
    largest, second = targets.float().topk(2, 1).values.unbind(1)
    least = targets.float().amin(1) if num_classes > 2 else torch.zeros_like(second)
    return targets.float().argmax(1), ((second - least).abs() <= TOLERANCE) & (largest - second > TOLERANCE)


def are_class_ids(targets: Tensor) -> bool:
    """Whether targets that :func:`single_class_targets` can read are class ids, and not shares of the classes."""
    return not targets.is_floating_point() and targets.shape[1:].numel() == 1


def are_class_targets(targets: Any, count: int, num_classes: int) -> bool:
    """Whether :func:`single_class_targets` can read ``targets`` as the labels of ``count`` images."""
    if not isinstance(targets, torch.Tensor) or targets.is_complex():
        return False
    if targets.shape == (count, num_classes) and num_classes > 1:
        return True
    return not targets.is_floating_point() and targets.shape in ((count,), (count, 1))
