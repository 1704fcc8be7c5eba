"""Selection of real images by features or confidence: the coresets that distilled sets are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tgdd_plugin.core.errors import InputError


def herding(features: torch.Tensor, labels: torch.Tensor, per_class: int) -> torch.Tensor:
    """Selects images of each class whose mean is near the class mean (M. Welling, "Herding Dynamical Weights to Learn",
    2009).

    They are selected one by one, without replacement, as in iCaRL (S.-A. Rebuffi et al., CVPR 2017): each time the
    image that brings the mean of the selected ones nearest to the class mean, and of several that do so equally the
    first. So the first m images of a class are its herding set of size m.

    Features are compared as they are, as in the herding baseline of dataset condensation (issue 15 of its authors'
    repository VICO-UoE/DatasetCondensation; IDC's ``coreset.py``). iCaRL itself scales them to length 1; for that, give
    ``torch.nn.functional.normalize(features)``.

    Args:
        features: Features ``(N, D)`` of any floating-point type.
        labels: Class ids ``(N,)``; K is one more than the largest.
        per_class: The number n of images of each class.

    Returns:
        Positions ``(K * n,)``, int64 on the CPU, those of class 0 first, within a class in the order of selection.

    Raises:
        InputError: If a class has fewer images, or features are not finite or not ``(N, D)`` with as many labels.

    Example:
        >>> features, labels = torch.tensor([[0.0], [1.0], [5.0], [7.0]]), torch.tensor([0, 0, 0, 1])
        >>> herding(features, labels, 1)  # the mean of class 0 is 2
        tensor([1, 3])
    """
    return _of_each_class(features, labels, per_class, _herd)


def k_center(features: torch.Tensor, labels: torch.Tensor, per_class: int) -> torch.Tensor:
    """Selects images of each class that no other is far from: greedy k-center (O. Sener and S. Savarese, ICLR 2018).

    The first is the image nearest to the mean of the class, as in the baseline of dataset condensation (issue 21 of its
    authors' repository VICO-UoE/DatasetCondensation). Each further one is the farthest from those selected before,
    and of several that are equally far the first, so that the first m images of a class are its set of size m.

    Arguments, result and errors are those of :func:`herding`.

    Example:
        >>> features, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 0])
        >>> k_center(features, labels, 2)  # the one nearest to the mean, then the one farthest from it
        tensor([1, 2])
    """
    return _of_each_class(features, labels, per_class, _spread)


def most_varied(confidences: torch.Tensor, labels: torch.Tensor, per_class: int) -> torch.Tensor:
    """Selects the images of each class that networks became sure of while they were trained.

    Those have the largest standard deviation of the probability of the true class over training, which is the
    confidence score of CAD (arXiv 2604.18811); of several that are equal, the first. What a network is sure of from the
    start varies little, and so does what it never learns.

    Args:
        confidences: The probability of each image's own class after each of S stages, ``(N, S)``, S at least 2.
        labels, per_class: As for :func:`herding`, as are result and errors.

    Example:
        >>> confidences = torch.tensor([[0.1, 0.1], [0.1, 0.9], [0.9, 0.9]])
        >>> most_varied(confidences, torch.tensor([0, 0, 0]), 1)
        tensor([1])
    """
    if confidences.ndim == 2 and confidences.shape[1] < 2:
        raise InputError(
            f"`confidences` must be of at least two stages, got {confidences.shape[1]}. Record more of the training."
        )
    return _of_each_class(confidences, labels, per_class, _vary)


def _of_each_class(
    features: torch.Tensor, labels: torch.Tensor, per_class: int, choose: Callable[[torch.Tensor, int], list[int]]
) -> torch.Tensor:
    """Applies ``choose`` to the float64 features ``(M, D)`` of each class; returns positions among all images."""
    if not features.is_floating_point() or features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise InputError(
            f"`features` must be floating point (N, D) with labels (N,), got {features.dtype} of shape "
            f"{tuple(features.shape)} with labels of shape {tuple(labels.shape)}. Give one row for each image."
        )
    if per_class < 1:
        raise InputError(f"`per_class` must be at least 1, got {per_class}. Give a larger number.")
    labels = labels.to("cpu", torch.int64)
    if int(labels.min()) < 0:
        raise InputError(
            f"`labels` must be class ids 0, 1, 2, ..., got labels from {int(labels.min())}. Renumber the labels."
        )
    counts = torch.bincount(labels).tolist()
    for label, have in enumerate(counts):
        if have < per_class:
            raise InputError(
                f"Class {label} has {have} images, {per_class} were to be selected. Ask for at most {min(counts)} per "
                f"class, or add images of that class."
            )
    chosen = []
    for label, own in enumerate(labels.argsort(stable=True).split(counts)):
        # In float64, so that rounding does not decide between images; one class at a time, to save memory.
        rows = features[own.to(features.device)].to("cpu", torch.float64)
        if not rows.isfinite().all():
            raise InputError(
                f"`features` must be finite, got other values in class {label}. Take a network whose training did not "
                f"diverge."
            )
        chosen.append(own[choose(rows, per_class)])
    return torch.cat(chosen)


def _herd(rows: torch.Tensor, count: int) -> list[int]:
    mean, total = rows.mean(0), torch.zeros_like(rows[0])
    chosen: list[int] = []
    for size in range(1, count + 1):
        # |mean - (total + row) / size|, times size.
        distances = _distances(rows, size * mean - total)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += rows[chosen[-1]]
    return chosen


def _spread(rows: torch.Tensor, count: int) -> list[int]:
    chosen = [int(_distances(rows, rows.mean(0)).argmin())]
    nearest = torch.full((len(rows),), torch.inf, dtype=rows.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, _distances(rows, rows[chosen[-1]]))
        # Below any distance: an image at distance 0 may be a copy, which can still be selected.
        nearest[chosen[-1]] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def _vary(rows: torch.Tensor, count: int) -> list[int]:
    return rows.std(1).argsort(descending=True, stable=True)[:count].tolist()


def _distances(rows: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    # Not by a matrix product, whose rounding gives equal images unequal distances.
    return torch.cdist(rows, point[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
