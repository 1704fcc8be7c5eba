"""Batches of new images and images from a memory: how they are joined, and how their losses are weighted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

Batch = tuple[torch.Tensor, torch.Tensor]


def replay_batch(
    images: Float[Tensor, "N C H W"],
    targets: Shaped[Tensor, "N *_"],
    memory_images: Float[Tensor, "M C H W"],
    memory_targets: Shaped[Tensor, "M *_"],
) -> tuple[Float[Tensor, "N+M C H W"], Shaped[Tensor, "N+M *_"]]:
    """Appends images of a memory to a batch.

    Args:
        images: Normalized images of the batch, ``(N, C, H, W)``.
        targets: Class ids ``(N,)``, or shares of the classes ``(N, K)``.
        memory_images: Normalized images of the memory, ``(M, C, H, W)``.
        memory_targets: Class ids ``(M,)``, or shares ``(M, K)``.

    Returns:
        Images ``(N + M, C, H, W)`` of the batch's dtype, on its device; and class ids ``(N + M,)`` or, if either
        targets are shares, shares ``(N + M, K)``.
    """
    return torch.cat([images, memory_images.to(images)]), join_targets(targets, memory_targets.to(targets.device))


def replay_loss(
    loss: Callable[[torch.Tensor, Batch], Any],
    outputs: torch.Tensor,
    batch: Batch,
    own: int,
    factors: tuple[float, float],
) -> Any:
    """Adds up the loss of a batch's own images and that of the memory's, each times its factor.

    Args:
        loss: A function of outputs and a batch, as a ``ComposerModel`` has it, which returns a mean over the images, or
            several in a dict or sequence.
        outputs: Logits ``(N + M, K)``.
        batch: Images and targets, N + M of each.
        own: N, the number of the batch's own images, which come first.
        factors: The two factors, see :func:`replay_factors`.
    """
    images, targets = batch
    parts = [loss(outputs[:own], (images[:own], targets[:own]))]
    if len(outputs) > own:  # a small microbatch may have none of the memory's
        parts.append(loss(outputs[own:], (images[own:], targets[own:])))
    return _weighted(parts, factors)


def replay_factors(own: int, replayed: int, batch: int, drawn: int, weight: float | None = None) -> tuple[float, float]:
    """Returns what the loss of a microbatch's own images and that of the memory's are multiplied by.

    The Trainer multiplies a microbatch's loss by its share of the batch, ``own / batch``. The loss of the batch is then
    ``(1 - weight) * (mean over its own) + weight * (mean over those from the memory)``, however it is split.

    Args:
        own, replayed: The numbers of the microbatch's own images (at least one) and of those from the memory.
        batch, drawn: The same numbers of the whole batch.
        weight: The share of the memory, from 0 to 1. Default: ``None``, every image counts alike.

    Example:
        >>> replay_factors(own=6, replayed=2, batch=6, drawn=2)  # the whole batch at once
        (0.75, 0.25)
    """
    weight = drawn / (batch + drawn) if weight is None else weight
    return 1 - weight, weight * (replayed / drawn) * (batch / own)


def join_targets(targets: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Concatenates targets: as class ids if both are class ids, otherwise as shares of the classes."""
    if targets.is_floating_point() != others.is_floating_point():
        shares = targets if targets.is_floating_point() else others
        targets, others = (
            tensor if tensor is shares else F.one_hot(tensor.flatten().long(), shares.shape[1]).to(shares)
            for tensor in (targets, others)
        )
    return torch.cat([targets, others.to(targets.dtype).view(-1, *targets.shape[1:])])


def _weighted(parts: list[Any], factors: tuple[float, float]) -> Any:
    """Adds up means times factors, within dicts and sequences of them."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: _weighted([part[key] for part in parts], factors) for key in first}
    if isinstance(first, (list, tuple)):
        return tuple(_weighted(list(each), factors) for each in zip(*parts, strict=True))
    return sum(factor * part.mean() for factor, part in zip(factors, parts, strict=False))
