"""Batches of new images and images from a memory: how they are joined, and how their losses are weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from tgdd_plugin.core.batches import IMAGES, LABELS, images_and_labels, other_entries, with_images_and_labels
from tgdd_plugin.core.errors import InputError, shown


def batch_tensors(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the images ``(N, C, H, W)`` and the targets ``(N, ...)`` of a batch that a memory can be mixed into.

    Args:
        batch: A pair, or a mapping with names that :func:`tgdd_plugin.core.batches.images_and_labels` knows.

    Raises:
        InputError: If it is anything else, or a mapping that holds something for each image besides: an image from the
            memory has none of it.
    """
    images, targets = images_and_labels(batch)
    tensors = isinstance(images, torch.Tensor) and isinstance(targets, torch.Tensor)
    if not tensors or not (isinstance(batch, Mapping) or len(batch) == 2):
        raise InputError(_no_pair(batch))
    for name, value in other_entries(batch).items():
        single = value is None or isinstance(value, (bool, int, float, str))
        if not single and not (isinstance(value, torch.Tensor) and value.ndim == 0):
            raise InputError(
                f"The batch must have nothing but single values beside its images and labels, as the memory has no "
                f"more to add, got a {type(value).__name__} under the key {shown(repr(name))}. Leave it out in the "
                f"loader's collate_fn."
            )
    return images, targets


def _no_pair(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return (
            f"The batch must have a tensor of images under one of the keys {', '.join(IMAGES)} and one of labels under "
            f"one of {', '.join(LABELS)}, got {shown(', '.join(map(str, batch)))}. Rename the keys."
        )
    return (
        f"The batch must be a pair of tensors (images, labels), or a mapping with both, got a {type(batch).__name__}. "
        f"Give a loader of such batches."
    )


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
    loss: Callable[[Any, Any], Any], outputs: Any, batch: Any, own: int, factors: tuple[float, float]
) -> Any:
    """Adds up the loss of a batch's own images and that of the memory's, each times its factor.

    Args:
        loss: A function of outputs and a batch, as a ``ComposerModel`` has it, which returns a mean over the images, or
            several in a dict or sequence.
        outputs: Logits ``(N + M, K)``, or a mapping of what a network answers with, see :func:`part_of_outputs`. A mean
            over all images that the network itself put there is the loss of either part: with the factors of images
            that count alike, their sum is that of all.
        batch: Images and targets, N + M of each, as a pair or a mapping.
        own: N, the number of the batch's own images, which come first.
        factors: The two factors, see :func:`replay_factors`.
    """
    images, targets = images_and_labels(batch)
    parts = []
    for part in (slice(own), slice(own, None)):
        if len(images[part]):  # a small microbatch may have none of the memory's
            of_part = with_images_and_labels(batch, images[part], targets[part])
            parts.append(loss(part_of_outputs(outputs, part, len(images)), of_part))
    return _weighted(parts, factors)


def part_of_outputs(outputs: Any, part: slice, size: int) -> Any:
    """Returns what a network answered for some of the images.

    Args:
        outputs: A tensor, or a mapping or sequence of them, such as Hugging Face's ``ModelOutput``. What is not of the
            length of the batch stays as it is.
        part: Which of the images.
        size: The number of all images.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs[part] if outputs.ndim and len(outputs) == size else outputs
    if isinstance(outputs, Mapping):
        return _mapping(outputs, {name: part_of_outputs(value, part, size) for name, value in outputs.items()})
    if isinstance(outputs, (tuple, list)):
        return _sequence(outputs, [part_of_outputs(value, part, size) for value in outputs])
    return outputs


def join_outputs(own: Any, others: Any) -> Any:
    """The reverse of :func:`part_of_outputs`, which leaves what is of no part the same object in both."""
    if own is others:
        return own
    if isinstance(own, torch.Tensor):
        return torch.cat([own, others])
    if isinstance(own, Mapping):
        return _mapping(own, {name: join_outputs(value, others[name]) for name, value in own.items()})
    return _sequence(own, [join_outputs(*pair) for pair in zip(own, others, strict=True)])


def _mapping(like: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    """A mapping of the same kind; those of Hugging Face take their content as keywords alone."""
    return content if type(like) is dict else type(like)(**content)


def _sequence(like: Any, content: list[Any]) -> Any:
    """A tuple, named or not, or a list of the same kind."""
    return type(like)(*content) if hasattr(like, "_fields") else type(like)(content)


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
