"""How much of a step is computed at once: classes in a chunk, and images in a call of the network."""

from __future__ import annotations

import torch


def even_part(count: int, limit: int | None) -> int:
    """How much of ``count`` to take at a time: at most ``limit``, a little less if that leaves no remainder.

    Example:
        >>> even_part(128, 40), even_part(7, 5)
        (32, 5)
    """
    most = min(limit or count, count)
    return next((size for size in range(most, most // 2, -1) if count % size == 0), most)


CPU_ACTIVATION = 10 * 2**20
"""Bytes of the largest activation in one call on a CPU: with two threads faster than twice as much. Beyond 32 MiB,
glibc maps and unmaps every tensor, and touching its pages anew costs more than computing: ReLU on 64 MiB took 20 times
as long as on 16."""


GPU_SHARE = 0.5
"""Of a GPU's free memory; a chunk that proves too large after all is halved."""


def chunk_sizes(
    footprint: tuple[int, int], num_classes: int, synthetic: int, real: int, device: torch.device
) -> tuple[int, int | None]:
    """Classes in one forward and backward pass, and most images in one call of the network.

    Args:
        footprint: Bytes of an image's largest activation and of all its activations.
        num_classes: K.
        synthetic: Decoded synthetic images of a class and step.
        real: Real ones.
        device: Where the networks run.

    Returns:
        The first from 1 to K; the second ``None`` for no limit.
    """
    largest, every = footprint
    if device.type != "cuda":
        images = max(1, CPU_ACTIVATION // largest)
        return even_part(num_classes, max(1, images // synthetic)), images
    # Both networks' activations wait for the backward pass, which needs about as much again; real images keep none.
    of_a_class = 3 * synthetic * every + 2 * real * largest
    fitting = int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE) // of_a_class
    return even_part(num_classes, max(1, fitting)), None
